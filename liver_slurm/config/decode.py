"""Decode plain tables (TOML, JSON) into the schema's dataclasses with pydantic, and report every problem at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from liver_slurm.config.keys import adapter, allowed_values, default_tables, known_keys, required_keys
from liver_slurm.config.outside import SECRET_KEYS
from liver_slurm.config.problem import Problem, join, nearest, shown
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.types import MAX_INT

Path = tuple[str | int, ...]
_ABSENT: Any = object()


def decode(table: Mapping[str, Any]) -> tuple[JobConfig, list[Problem]]:
    """Decode a job file's tables.

    Returns:
        the config, in which keys that are wrong or missing have the schema's defaults, and what is wrong.
    """
    filled = _with_defaults(table)
    try:
        return _validated(filled), []
    except ValidationError as error:
        errors = {_path(one["loc"], filled): one for one in error.errors(include_url=False)}
    # Each alternative of a union has its complaint; the one on an element says more than the one on the whole list.
    deepest = [path for path in errors if not any(other[: len(path)] == path != other for other in errors)]
    # Keys that nobody knows come first: a wrong value beside one may be what was meant for another key.
    problems = sorted((_problem(path, errors[path], table) for path in deepest), key=lambda one: one.spoils)
    meant = {one.meant for one in problems}
    problems = [one for one in problems if not (one.missing and one.key in meant)]
    return _validated(_without(filled, set(deepest))), problems


def _validated(table: Mapping[str, Any]) -> JobConfig:
    config = adapter().validate_python(table)
    assert config is not None
    return config


def _with_defaults(table: Mapping[str, Any]) -> dict[str, Any]:
    """Add the defaults, so that they are checked too: a path becomes absolute, a required key is found missing."""
    filled = dict(table)
    for section, defaults in default_tables().items():
        given = table.get(section, {})
        filled[section] = {**defaults, **given} if isinstance(given, Mapping) else given
    return filled


def _path(location: Sequence[str | int], table: Mapping[str, Any]) -> Path:
    """Turn pydantic's location into a path in the table, without the names of union members in it."""
    path: Path = ()
    value: Any = table
    for part in location:
        if (inner := _inner(value, part)) is not _ABSENT:
            path, value = (*path, part), inner
    return path


def _inner(value: Any, part: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, _ABSENT)
    inside = isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value)
    return value[part] if inside else _ABSENT


def _without(value: Any, paths: Collection[Path], here: Path = ()) -> Any:
    """Copy nested tables and lists without what lies at ``paths``."""
    if isinstance(value, Mapping):
        return {key: _without(one, paths, (*here, key)) for key, one in value.items() if (*here, key) not in paths}
    if isinstance(value, (list, tuple)):
        return [_without(one, paths, (*here, at)) for at, one in enumerate(value) if (*here, at) not in paths]
    return value


def _problem(path: Path, error: Mapping[str, Any], table: Mapping[str, Any]) -> Problem:
    key = known = ""
    for part in path:
        key = join(key, str(part))
        known = known if isinstance(part, int) else join(known, part)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        near = nearest(known, known_keys())
        text = "no such key" + (f"; the nearest is {near}" if near else "")
        return Problem(key, text, spoils=False, meant=near)
    if error["type"] == "dataclass_type":
        header = f"[[{known}]]" if isinstance(path[-1], int) else f"[{known}]"
        return Problem(key, f"{shown(error['input'])} is not a table; write {header} and its keys below it")
    if known in required_keys() and _inner(table.get(str(path[0]), {}), path[1]) is _ABSENT:
        return Problem(key, f"is missing; allowed: {allowed_values()[known]}", missing=True)
    if isinstance(error["input"], Mapping) and allowed_values()[known] == "a list of tables":
        return Problem(key, f"is a single table; write [[{known}]], in two brackets, above the keys of each")
    reason = str(error.get("ctx", {}).get("error", ""))
    allowed = allowed_values()[f"{known}[]" if isinstance(path[-1], int) else known]
    if isinstance(error["input"], int) and error["input"] > MAX_INT:
        allowed += f", at most {MAX_INT}"
    value = "its value" if key.startswith(SECRET_KEYS) else shown(error["input"])
    return Problem(key, f"{value} is not allowed{reason and f' ({reason})'}; allowed: {allowed}")
