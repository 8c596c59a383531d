"""One job as plain tables, merged from the site file, the job file and overrides; each key knows where it came from."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli

from liver_slurm.base.errors import BadInput
from liver_slurm.config.outside import SECRET_KEYS
from liver_slurm.config.problem import Problem, join, one_line, shown

Table = dict[str, Any]
LARGEST = 4 << 20
"""Bytes of a job or site file at most: what is larger is something else, as a device that never ends."""
_LINE = re.compile(r"\(at line (\d+), ")


class Document:
    """Tables merged from several places; what is merged later goes before what was there."""

    def __init__(self) -> None:
        self._table: Table = {}
        self._origins: dict[str, str] = {}

    def tables(self) -> Table:
        """Return the tables as the schema knows them.

        TOML reads an unquoted 04:00:00 as a time of day; here it is a duration, as text.
        """
        plain: Table = _plain_times(self._table)
        return plain

    def merge(self, table: Mapping[str, Any], origin: str) -> None:
        """Put tables over those that are there, key by key.

        Args:
            origin: the name of their file, for messages.
        """
        self._merge(self._table, table, "", origin)

    def _merge(self, into: Table, table: Mapping[str, Any], section: str, origin: str) -> None:
        for name, value in table.items():
            key = join(section, str(name))
            self._origins[key] = origin
            if isinstance(value, dict):
                inner = into.get(name)
                into[name] = dict(inner) if isinstance(inner, dict) else {}
                self._merge(into[name], value, key, origin)
            else:
                into[name] = value

    def origin(self, key: str) -> str | None:
        """Name where a key came from; None: nobody gave it."""
        return self._origins.get(key)

    def override(self, text: str) -> None:
        """Apply one ``section.key=value``; a number in the key counts the tables of a list from 0.

        Raises:
            BadInput: it is not of that form, or names no place.
        """
        key, equals, value = (part.strip() for part in text.partition("="))
        parts = key.split(".")
        if not equals or len(parts) < 2 or not all(parts):
            raise BadInput(f"--set {one_line(text)}: not an override; write section.key=value, such as train.lr=1e-3")
        place: Any = self._table
        try:
            for index, name in enumerate(parts[:-1]):
                default: Any = [] if parts[index + 1].isdecimal() else {}
                place = _element(place, name, default)
            _put(place, parts[-1], parse_value(value))
        except (AttributeError, IndexError, TypeError, ValueError):
            reason = f"there is no place {one_line(key)}; {self._why_no_place(parts)}"
            shown = key if key.startswith(SECRET_KEYS) else text
            raise BadInput(f"--set {one_line(shown)}: {reason}") from None
        self._origins[key] = "--set"
        self._origins.setdefault(parts[0], "--set")

    def _why_no_place(self, parts: Sequence[str]) -> str:
        """Say where the way of an override ends."""
        place: Any = self._table
        for index, name in enumerate(parts):
            if isinstance(place, list):
                section, last = one_line(".".join(parts[:index])), len(place)
                if not name.isdecimal() or int(name) > last:
                    return f"{section} has {last}, counted from 0; allowed: 0 to {last}, the last for a new one"
                place = place[int(name)] if int(name) < last else None
            else:
                place = place.get(name) if isinstance(place, dict) else None
        return "see the job file for what it is part of"

    def replace_resources(self, workers: int, standbys: int) -> None:
        """Ask for plain processes in place of Slurm resources: one component of ``workers``, single standbys."""
        live, standby = self._table.setdefault("live", {}), self._table.setdefault("standby", {})
        if not isinstance(live, dict) or not isinstance(standby, dict):
            return  # decoding says so
        match live.get("component"):
            case [dict() as first, *_]:
                pass
            case _:
                first = {}
        kept = {name: first[name] for name in ("cpus_per_task", "gpus_per_task") if name in first}
        live["component"] = [{**kept, "nodes": 1, "tasks_per_node": workers}]
        standby.update({"gpus_per_task": 0, **kept, "partitions": ["local"], "max_jobs": standbys})
        standby.update({"nodes_per_job": 1, "tasks_per_node": 1, "unit": []})

    def line(self, problem: Problem, default: str) -> str:
        """Write a problem down in one line, with the file or option that its key came from.

        Args:
            default: what stands for the file of a key that came from nowhere, as one that is missing does.
        """
        key = problem.key
        while key and key not in self._origins:
            key = key.rpartition(".")[0]
        return f"{self._origins.get(key, default)}: {problem.key}: {problem.text}"


def read_toml(path: Path) -> Table:
    """Read a TOML file.

    Raises:
        BadInput: it cannot be read, or is not TOML.
    """
    text = ""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise BadInput(f"{path}: is larger than {LARGEST >> 20} MiB; is it a job file?")
        text = content.decode("utf-8-sig")  # editors of Windows begin a file with a mark
        return tomli.loads(text)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (tomli.TOMLDecodeError, RecursionError, ValueError) as error:
        raise BadInput(f"{path}: not TOML: {one_line(error)}{_advice(str(error), text)}") from None


def _advice(message: str, text: str) -> str:
    """Say what helps against the usual mistakes in TOML; nothing where it is none of them."""
    if (at := _LINE.search(message)) is None:
        return ""
    line = text.split("\n")[int(at[1]) - 1].strip()
    key, _, value = (part.strip() for part in line.partition("="))
    if message.startswith(("Cannot declare", "Cannot overwrite")):
        return f"; {one_line(key, 60)} is there twice: merge them"
    if re.match(r"[\w.:/$~-]", value) and message.startswith(("Invalid value", "Expected newline")):
        return f"; text needs quotes: {one_line(key, 60)} = {shown(value.partition('#')[0].strip())}"
    return ""


def different_keys(first: Mapping[str, Any], second: Mapping[str, Any], section: str = "") -> list[str]:
    """List the dotted keys that two files' tables both have, with different values."""
    found = []
    for name in first:
        key, mine, other = join(section, name), first[name], second.get(name, first[name])
        if isinstance(mine, dict) and isinstance(other, dict):
            found += different_keys(mine, other, key)
        elif mine != other:
            found.append(key)
    return found


def parse_value(text: str) -> Any:
    """Read a TOML value, or else take the text itself; likewise what TOML would take for a date or a time of day."""
    try:
        parsed = tomli.loads(f"value = {text}")
    except (tomli.TOMLDecodeError, RecursionError, ValueError):
        return text
    value = parsed["value"]
    return text if len(parsed) > 1 or isinstance(value, (datetime.date, datetime.time)) else value


def without_none(value: Any) -> Any:
    """Copy nested tables without the keys whose value is None, which is how TOML says it."""
    if isinstance(value, dict):
        return {name: without_none(inner) for name, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _element(place: Any, name: str, default: Any) -> Any:
    if isinstance(place, list):
        if int(name) == len(place):
            place.append(default)
        return place[int(name)]
    return place.setdefault(name, default)


def _put(place: Any, name: str, value: Any) -> None:
    if isinstance(place, list):
        if int(name) == len(place):
            place.append(value)
        place[int(name)] = value
    elif isinstance(place, dict):
        place[name] = value
    else:
        raise TypeError(name)


def _plain_times(value: Any) -> Any:
    if isinstance(value, datetime.time):
        return value.isoformat()
    if isinstance(value, dict):
        return {name: _plain_times(inner) for name, inner in value.items()}
    return [_plain_times(inner) for inner in value] if isinstance(value, list) else value
