"""Job files: read, overridden, validated whole; and their resolved form in a run directory."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tomli

from liver_slurm.base.errors import BadInput
from liver_slurm.config.checks import cross_check
from liver_slurm.config.problem import join
from liver_slurm.config.schema import JobConfig, JobSection
from liver_slurm.config.types import expand_path

Table = dict[str, Any]
DEFAULT_SITE = Path("~/.config/liver-slurm/site.toml")


def load_job(
    path: str | Path,
    overrides: Sequence[str] = (),
    site: Path | None = None,
    *,
    workers: int | None = None,
    standbys: int = 0,
    files: bool = True,
    sections: Mapping[str, Any] | None = None,
) -> JobConfig:
    """Read a job file over the site file's defaults, apply ``section.key=value`` overrides, validate everything.

    A run's ``job.json`` is a job file too.
    Relative paths in it are relative to the working directory, and absolute in the result.

    Args:
        site: site file; default: ``$LIVER_SITE``, else ``~/.config/liver-slurm/site.toml`` where it exists.
        workers: a run as plain processes: so many live workers and ``standbys`` standbys take the place of the
            Slurm resources.
        files: also check that data and tokenizer can be read; a plan needs neither.
        sections: further overrides, as tables: ``{"train": {"steps": 5}}``.

    Raises:
        BadInput: one line for each thing that is wrong.
    """
    path = Path(path)
    document = _Document()
    if (site_path := _site_path(site)) is not None:
        document.merge(_read(site_path), site_path.name)
    resolved = path.suffix == ".json"
    document.merge(_without_none(dataclasses.asdict(read_job(path))) if resolved else _read(path), path.name)
    document.merge(sections or {}, "overrides")
    for text in overrides:
        document.override(text)
    if workers is not None:
        document.plain_processes(workers, standbys)
    return document.validated(path.name, files)


def load_site(site: Path | None = None) -> JobConfig:
    """The site file's defaults over the schema's, for what needs no job: keys that every job must have may be missing.

    Raises:
        BadInput: one line for each thing that is wrong.
    """
    document = _Document()
    if (path := _site_path(site)) is not None:
        document.merge(_read(path), path.name)
    from liver_slurm.config.decode import decode

    config, problems = decode(_plain_times(document.table))
    problems = [one for one in problems if not one.missing]
    if problems:
        raise BadInput("\n".join(f"{path}: {one.key}: {one.text}" for one in problems))
    return config


def check_job(config: JobConfig, *, files: bool = True, sections: Mapping[str, Any] | None = None) -> JobConfig:
    """Validate a config that was made in Python, with ``sections`` over it; arguments and errors as :func:`load_job`.

    Returns it with its values normalised.
    """
    document = _Document()
    document.merge(_without_none(dataclasses.asdict(config)), "config")
    document.merge(sections or {}, "overrides")
    return document.validated("config", files)


def default_run_root() -> Path:
    """Where runs lie when no job file is at hand: the site file's ``job.run_root``, or the schema's default."""
    site = _site_path(None)
    root = _read(site).get("job", {}).get("run_root") if site is not None else None
    try:
        return Path(expand_path(root if isinstance(root, str) else JobSection.run_root))
    except ValueError as error:
        raise BadInput(f"{site}: job.run_root: {root!r} is not allowed ({error}); allowed: a path") from None


def save_job(config: JobConfig, path: Path) -> None:
    """Write a resolved job as JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=1) + b"\n")


def read_job(path: Path) -> JobConfig:
    """Read what :func:`save_job` wrote.

    Raises:
        BadInput: there is no such file, or it is not a resolved job.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=JobConfig)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; is {path.parent} a run directory?") from None
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(f"{path}: not a resolved job: {_one_line(error)}") from None


class _Document:
    """Tables merged from several places, with where each key came from."""

    def __init__(self) -> None:
        self.table: Table = {}
        self.origins: dict[str, str] = {}

    def merge(self, table: Mapping[str, Any], origin: str) -> None:
        self._merge(self.table, table, "", origin)

    def _merge(self, into: Table, table: Mapping[str, Any], prefix: str, origin: str) -> None:
        for name, value in table.items():
            key = join(prefix, str(name))
            self.origins[key] = origin
            if isinstance(value, dict):
                inner = into.get(name)
                into[name] = dict(inner) if isinstance(inner, dict) else {}
                self._merge(into[name], value, key, origin)
            else:
                into[name] = value

    def override(self, text: str) -> None:
        """Apply one ``section.key=value``; a number in the key counts the tables of a list from 0."""
        key, equals, value = (part.strip() for part in text.partition("="))
        parts = key.split(".")
        if not equals or len(parts) < 2 or not all(parts):
            raise BadInput(f"--set {text}: not an override; write section.key=value, such as train.lr=1e-3")
        place: Any = self.table
        try:
            for index, name in enumerate(parts[:-1]):
                default: Any = [] if parts[index + 1].isdecimal() else {}
                place = _element(place, name, default)
            _put(place, parts[-1], _parse_value(value))
        except (KeyError, IndexError, TypeError, ValueError):
            raise BadInput(f"--set {text}: there is no place {key}; see the job file for what it is part of") from None
        self.origins[key] = "--set"
        self.origins.setdefault(parts[0], "--set")

    def plain_processes(self, workers: int, standbys: int) -> None:
        """Replace the resources: each worker a component slot on this machine, each standby a unit of its own."""
        live, standby = self.table.setdefault("live", {}), self.table.setdefault("standby", {})
        if not isinstance(live, dict) or not isinstance(standby, dict):
            return  # validation says so
        match live.get("component"):
            case [dict() as first, *_]:
                pass
            case _:
                first = {}
        kept = {name: first[name] for name in ("cpus_per_task", "gpus_per_task") if name in first}
        live["component"] = [{**kept, "nodes": 1, "tasks_per_node": workers}]
        standby.update({"gpus_per_task": 0, **kept, "partitions": ["local"], "max_jobs": standbys})
        standby.update({"nodes_per_job": 1, "tasks_per_node": 1, "unit": []})

    def validated(self, name: str, files: bool) -> JobConfig:
        from liver_slurm.config.decode import decode

        config, problems = decode(_plain_times(self.table))
        if config.model.provider is not None:  # it may know the sizes itself
            problems = [one for one in problems if not (one.missing and one.key.startswith("model."))]
        bad = {problem.key for problem in problems if problem.spoils}
        problems = [*problems, *cross_check(config, bad, files)]
        if problems:
            raise BadInput("\n".join(f"{self._origin(one.key, name)}: {one.key}: {one.text}" for one in problems))
        return config

    def _origin(self, key: str, default: str) -> str:
        while key:
            if key in self.origins:
                return self.origins[key]
            key = key.rpartition(".")[0]
        return default


def _site_path(site: Path | None) -> Path | None:
    if site is not None:
        return site
    if given := os.environ.get("LIVER_SITE"):
        return Path(given)
    default = DEFAULT_SITE.expanduser()
    return default if default.exists() else None


def _read(path: Path) -> Table:
    try:
        return tomli.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (tomli.TOMLDecodeError, RecursionError, ValueError) as error:
        raise BadInput(f"{path}: not TOML: {_one_line(error)}") from None


def _parse_value(text: str) -> Any:
    """A TOML value, or else the text itself; so is what TOML would take for a time of day."""
    try:
        parsed = tomli.loads(f"value = {text}")
    except (tomli.TOMLDecodeError, RecursionError, ValueError):
        return text
    value = parsed["value"]
    return text if len(parsed) > 1 or isinstance(value, (datetime.date, datetime.time)) else value


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
    """TOML reads an unquoted 04:00:00 as a time of day; here it is a duration, as text."""
    if isinstance(value, datetime.time):
        return value.isoformat()
    if isinstance(value, dict):
        return {name: _plain_times(inner) for name, inner in value.items()}
    return [_plain_times(inner) for inner in value] if isinstance(value, list) else value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(inner) for name, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
