"""Every key of a job file, read off the JSON schema that pydantic makes of :class:`JobConfig`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from liver_slurm.config import schema as schema_module
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.types import SIZE

Schema = Mapping[str, Any]
_KINDS = {"boolean": "true or false", "string": "text", "object": "a table"}


@dataclass(frozen=True)
class Key:
    """One key of a job file."""

    name: str
    """Dotted; ``live.component.nodes`` is a key of each ``[[live.component]]``."""
    text: str
    """What it is for; empty unless documentation was asked for."""
    allowed: str
    """Type and allowed values, for people."""
    element: str
    """Of a list: the same for each of its elements."""
    default: Any
    """As a job file would have it; None: there is none."""
    required: bool
    """Its default is not allowed, so a job file must have it."""


@dataclass(frozen=True)
class Section:
    """A table of a job file, and its keys."""

    name: str
    """Dotted, such as ``live.component``."""
    repeated: bool
    """The section is a list of tables, written ``[[name]]``."""
    text: str
    """What it is for."""
    keys: tuple[Key, ...]


@functools.cache
def adapter(documented: bool = False) -> TypeAdapter[JobConfig | None]:
    """Make pydantic's validator of job files, which takes tables and gives the schema's dataclasses.

    Args:
        documented: read the docstrings of the keys, too, which takes longer than the rest.
    """
    config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=documented)
    # A dataclass alone takes no config from outside; an optional one hands it on to all dataclasses inside it.
    return TypeAdapter(JobConfig | None, config=config)


@functools.cache
def sections(documented: bool = False) -> tuple[Section, ...]:
    """List all sections in the schema's order, each before those inside it.

    Args:
        documented: with the texts of sections and keys.
    """
    root = adapter(documented).json_schema()
    definitions: Mapping[str, Schema] = root["$defs"]
    return tuple(_sections(definitions[JobConfig.__name__], definitions, ""))


def known_keys() -> list[str]:
    """List all dotted keys, sections included; elements of a list of tables have no index."""
    return [name for one in sections() for name in (one.name, *(key.name for key in one.keys))]


@functools.cache
def allowed_values() -> dict[str, str]:
    """Map each key to what its values may be, for people; ``KEY[]`` stands for the elements of a list."""
    lists = {one.name: "a list of tables" for one in sections() if one.repeated}
    keys = [key for one in sections() for key in one.keys]
    return lists | {key.name: key.allowed for key in keys} | {f"{key.name}[]": key.element for key in keys}


@functools.cache
def required_keys() -> frozenset[str]:
    """Find the keys whose default is not allowed, so that a job file must have them."""
    try:
        adapter().validate_python(default_tables())
    except ValidationError as error:
        return frozenset(".".join(map(str, one["loc"])) for one in error.errors(include_url=False))
    return frozenset()


def default_tables() -> dict[str, dict[str, Any]]:
    """Map each section and key to its default, as plain tables; None: the key has none."""
    return dataclasses.asdict(JobConfig())


def _sections(table: Schema, definitions: Mapping[str, Schema], prefix: str) -> Iterator[Section]:
    for name, schema in table["properties"].items():
        reference = schema.get("$ref") or schema.get("items", {}).get("$ref")
        if reference is None:
            continue
        kind = reference.rpartition("/")[2]
        inner = definitions[kind]
        keys = tuple(
            _key(f"{prefix}{name}.{key}", one)
            for key, one in inner["properties"].items()
            if "$ref" not in one and "$ref" not in one.get("items", {})
        )
        text = _text(schema) or inspect.getdoc(getattr(schema_module, kind)) or ""
        yield Section(f"{prefix}{name}", "items" in schema, text, keys)
        yield from _sections(inner, definitions, f"{prefix}{name}.")


def _key(name: str, schema: Schema) -> Key:
    default = schema.get("default", {} if schema.get("type") == "object" else None)
    if schema.get("allowed") == SIZE.text:
        default = _size(default)
    lists = [one for one in (schema, *schema.get("anyOf", ())) if "items" in one]
    return Key(
        name=name,
        text=_text(schema),
        allowed=_allowed(schema),
        element=_allowed(lists[0]["items"]) if lists else "",
        default=default,
        required=name in required_keys(),
    )


def _size(number: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number % (1 << power) == 0:
            return f"{number >> power}{unit}"
    return str(number)


def _text(schema: Schema) -> str:
    return inspect.cleandoc(schema.get("description", ""))


def _allowed(schema: Schema) -> str:
    match schema:
        case {"allowed": str(text)}:  # an annotation of config.types
            return text
        case {"anyOf": options}:  # null is none of them: TOML cannot say it, a key is left out instead
            return ", or ".join(_allowed(one) for one in options if one != {"type": "null"})
        case {"enum": choices}:
            return ", ".join(f'"{choice}"' for choice in choices)
        case {"const": choice}:
            return f'"{choice}"'
        case {"items": items}:
            return f"a list, each {_allowed(items)}"
    return _KINDS[schema["type"]]
