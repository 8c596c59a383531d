"""From plain tables (TOML, JSON) to the schema's dataclasses, by their type hints; every problem at once."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, Union

from liver_slurm.config.types import MAX_INT, Rule

T = TypeVar("T")
_MISSING: Any = object()
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a job."""

    key: str
    text: str
    spoils: bool = True
    """The key's value is not the one that was meant, so nothing is to be concluded from it."""


@dataclass
class Decoder:
    """Decodes one document; ``problems`` fills up on the way."""

    problems: list[Problem] = field(default_factory=list)
    known_keys: tuple[str, ...] = ()
    """All dotted keys, to name the nearest one where a key is unknown."""

    def table(self, kind: type[T], value: object, key: str = "") -> T:
        """Decode a table into the dataclass ``kind``; fields that are wrong keep their defaults."""
        if not isinstance(value, Mapping):
            self._problem(key, f"{shown(value)} is not a table; write [{key}] and its keys below it")
            value = {}
        fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
        hints = typing.get_type_hints(kind, include_extras=True)
        for name in value:
            if name not in fields:
                self._unknown(key, str(name))
        return kind(**{name: self._field(item, hints[name], value, join(key, name)) for name, item in fields.items()})

    def _field(self, item: dataclasses.Field[Any], hint: Any, table: Mapping[str, Any], key: str) -> Any:
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if item.name in table or dataclasses.is_dataclass(hint):
            return self.value(hint, table.get(item.name, {}), key, default)
        if isinstance(default, (str, int, float)):
            # Defaults pass the same rules: a path becomes absolute, and a key whose default is not allowed is required.
            quiet = Decoder()
            decoded = quiet.value(hint, default, key, default)
            if quiet.problems:
                self._problem(key, f"is missing; allowed: {allowed(hint)}")
            return decoded
        return default

    def value(self, hint: Any, value: object, key: str, default: Any) -> Any:
        """Decode one value of type ``hint``; ``default`` where it is wrong, which is noted."""
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self.table(hint, value, key)
        element = element_type(hint)
        if element is not None and isinstance(value, (list, tuple)):
            return self._list(element, value, key)
        before = len(self.problems)
        if _base(hint) is dict and isinstance(value, Mapping):
            self._plain(value, key)
            return default if len(self.problems) > before else dict(value)
        try:
            return _scalar(hint, value)
        except ValueError as error:
            why = f" ({error})" if str(error).startswith("$") else ""
            self._problem(key, f"{shown(value)} is not allowed{why}; allowed: {allowed(hint)}")
            return default

    def _list(self, element: Any, values: list[Any] | tuple[Any, ...], key: str) -> tuple[Any, ...]:
        decoded = (self.value(element, value, f"{key}.{index}", _MISSING) for index, value in enumerate(values))
        return tuple(value for value in decoded if value is not _MISSING)

    def _plain(self, value: object, key: str) -> None:
        """What is passed through unread must at least survive JSON."""
        if isinstance(value, Mapping):
            for name, inner in value.items():
                self._plain(inner, join(key, str(name)))
        elif isinstance(value, (list, tuple)):
            for index, inner in enumerate(value):
                self._plain(inner, f"{key}.{index}")
        elif not isinstance(value, (str, bool, int, float)) or not _finite(value):
            self._problem(key, f"{shown(value)} is not allowed; allowed: text, numbers, true, false, lists, tables")

    def _unknown(self, section: str, name: str) -> None:
        key = join(section, name)
        near = nearest(key, self.known_keys)
        self.problems.append(Problem(key, "no such key" + (f"; the nearest is {near}" if near else ""), spoils=False))

    def _problem(self, key: str, text: str) -> None:
        self.problems.append(Problem(key, text))


def join(section: str, name: str) -> str:
    """A dotted key."""
    return f"{section}.{name}" if section else name


def shown(value: object) -> str:
    """A value as a job file would have it, short and on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return text if len(text) <= 60 else text[:57] + "…"


def nearest(key: str, known: tuple[str, ...]) -> str | None:
    """The known dotted key most like ``key``: one of the same name in another section, else one of similar spelling."""
    section, _, name = key.rpartition(".")
    depth = [other for other in known if (other.count(".") == 0) == (not section)]
    for other in depth:
        if other.rpartition(".")[2] == name:
            return other
    same_section = {other.rpartition(".")[2]: other for other in depth if other.rpartition(".")[0] == section}
    if found := difflib.get_close_matches(name, same_section, n=1, cutoff=0.5):
        return same_section[found[0]]
    found = difflib.get_close_matches(key, depth, n=1, cutoff=0.6)
    return found[0] if found else None


def walk_keys(kind: Any, key: str = "") -> Iterator[str]:
    """All dotted keys of a dataclass, sections included; elements of a list of tables have no index."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):
        inner = join(key, item.name)
        yield inner
        nested = element_type(hints[item.name]) or hints[item.name]
        if dataclasses.is_dataclass(nested):
            yield from walk_keys(nested, inner)


def allowed(hint: Any) -> str:
    """What a value of type ``hint`` may be, for people."""
    options = _options(hint)
    if len(options) > 1:
        return ", or ".join(allowed(option) for option in options)
    hint = options[0]
    if typing.get_origin(hint) is typing.Annotated:
        rules = [rule.allowed for rule in hint.__metadata__ if isinstance(rule, Rule)]
        base = _NAMES.get(_base(hint), "")
        plain_number = _base(hint) in (int, float) and not any(rule.raw for rule in _rules(hint))
        return " ".join([base, *rules] if plain_number else rules)
    if typing.get_origin(hint) is Literal:
        return ", ".join(f'"{choice}"' for choice in typing.get_args(hint))
    if (element := element_type(hint)) is not None:
        return "a list of tables" if dataclasses.is_dataclass(element) else f"a list, each {allowed(element)}"
    return "a table" if _base(hint) is dict else _NAMES[hint]


def _scalar(hint: Any, value: object) -> Any:
    options = _options(hint)
    if len(options) > 1:
        for option in options:
            with contextlib.suppress(ValueError):
                return _scalar(option, value)
        raise ValueError("none of the allowed")
    hint, rules = options[0], _rules(options[0])
    for rule in rules:
        if rule.raw:
            return rule.parse(value)
    base = _base(hint)
    if typing.get_origin(hint) is Literal:
        # `in` would take 1 for True
        if not isinstance(value, str) or value not in typing.get_args(hint):
            raise ValueError("not a choice")
        return value
    if base is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INT:
        value = float(value)
    if type(value) is not base or not _finite(value):
        raise ValueError("wrong type")
    for rule in rules:
        value = rule.parse(value)
    return value


def _finite(value: object) -> bool:
    if isinstance(value, str):
        return "\0" not in value
    return abs(value) <= MAX_INT if isinstance(value, int) else not isinstance(value, float) or math.isfinite(value)


def _options(hint: Any) -> list[Any]:
    """Alternatives of a union; None is not one, as TOML cannot say it: a key is left out instead."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [option for option in typing.get_args(hint) if option is not type(None)]
    return [hint]


def _rules(hint: Any) -> list[Rule]:
    return [rule for rule in getattr(hint, "__metadata__", ()) if isinstance(rule, Rule)]


def _base(hint: Any) -> Any:
    hint = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    return typing.get_origin(hint) or hint


def element_type(hint: Any) -> Any:
    """Type of the elements where ``hint`` is, or may be, a tuple of any length."""
    for option in _options(hint):
        if typing.get_origin(option) is tuple:
            return typing.get_args(option)[0]
    return None
