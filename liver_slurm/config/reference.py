"""The annotated reference of every key of job and site files, made from the schema: types, defaults, docstrings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from liver_slurm.config.decode import Decoder, allowed, element_type, shown
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.types import Bytes

WIDTH = 100
HEADER = """\
# Every key of a job file, made from liver_slurm/config/schema.py. After a change there:
#
#     liver-slurm config reference > configs/reference.toml
#
# A site file has the same sections and keys. Commented keys are shown with their defaults; those without a value have
# none that could be written down, and their text says what happens when they are left out.
"""


@dataclass(frozen=True)
class Key:
    """One key of a job file."""

    name: str
    """Dotted; ``live.component.nodes`` is a key of each ``[[live.component]]``."""
    text: str
    """What it is for."""
    allowed: str
    """Type and allowed values, for people."""
    default: Any
    """As the schema has it; None: there is none."""
    required: bool
    """Its default is not allowed, so a job file must have it."""


@dataclass(frozen=True)
class Section:
    """A table of a job file, and its keys."""

    header: str
    """``[job]``, or ``[[live.component]]`` for one that may be repeated."""
    text: str
    keys: tuple[Key, ...]


def sections(kind: Any = JobConfig, prefix: str = "") -> Iterator[Section]:
    """All sections in the schema's order, each before those inside it."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for item in dataclasses.fields(kind):
        name = f"{prefix}{item.name}"
        element = element_type(hints[item.name])
        inner = element or hints[item.name]
        if dataclasses.is_dataclass(inner):
            text = _texts(kind).get(item.name) or inspect.cleandoc(inner.__doc__ or "")
            yield Section(f"[[{name}]]" if element else f"[{name}]", text, tuple(_keys(inner, name)))
            yield from sections(inner, f"{name}.")


def reference() -> str:
    """The reference as TOML in which every key is a comment."""
    return HEADER + "".join(_section(section) for section in sections())


def _keys(kind: Any, prefix: str) -> Iterator[Key]:
    hints = typing.get_type_hints(kind, include_extras=True)
    texts = _texts(kind)
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        if dataclasses.is_dataclass(element_type(hint) or hint):
            continue
        default: Any = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        yield Key(
            name=f"{prefix}.{item.name}",
            text=texts.get(item.name, ""),
            allowed=allowed(hint),
            default=_size(default) if hint == Bytes else default,
            required=_refused(hint, default),
        )


def _texts(kind: Any) -> dict[str, str]:
    """Field → the string that follows it in the class's source."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            texts[field.target.id] = inspect.cleandoc(str(after.value.value))
    return texts


def _refused(hint: Any, default: Any) -> bool:
    if not isinstance(default, (str, int, float)):
        return False
    decoder = Decoder()
    decoder.value(hint, default, "", default)
    return bool(decoder.problems)


def _size(number: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number % (1 << power) == 0:
            return f"{number >> power}{unit}"
    return str(number)


def _section(section: Section) -> str:
    lines = ["", "", *_comment(section.text), section.header]
    for key in section.keys:
        lines += ["", *_comment(key.text), *_comment(f"Allowed: {key.allowed}{'; required' if key.required else ''}.")]
        name = key.name.rpartition(".")[2]
        lines.append(f"# {name} =" + ("" if key.required or key.default is None else f" {toml(key.default)}"))
    return "\n".join(lines) + "\n"


def toml(value: Any) -> str:
    """A default as TOML has it."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(one)}" for name, one in value.items()) + "}"
    return shown(value)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.replace("``", "`").split()),
        WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )
