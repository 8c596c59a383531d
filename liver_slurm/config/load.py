"""Load job files: read, override and check them; write and read their resolved form in a run directory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from liver_slurm.base.errors import BadInput
from liver_slurm.base.files import replace_file
from liver_slurm.config import own_loop
from liver_slurm.config.checks import cross_check
from liver_slurm.config.document import Document, different_keys, read_toml, without_none
from liver_slurm.config.from_hf import filled
from liver_slurm.config.problem import one_line
from liver_slurm.config.schema import JobConfig, JobSection, ModelSection
from liver_slurm.config.types import expand_path

DEFAULT_SITE = "~/.config/liver-slurm/site.toml"


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
    """Read a job file over the site file's defaults, apply ``section.key=value`` overrides, check everything.

    A run's ``job.json`` is a job file too.
    Relative paths in it are relative to the working directory, and absolute in the result.

    Args:
        site: site file; default: ``$LIVER_SITE``, else ``~/.config/liver-slurm/site.toml`` where it exists.
        workers: number of guaranteed workers of a run as plain processes; they and ``standbys`` standbys take the
            place of the Slurm resources.
        files: also check what only a run needs: that data and tokenizer can be read, that standbys have a partition.
        sections: further overrides, as tables: ``{"train": {"steps": 5}}``.

    Raises:
        BadInput: one line for each thing that is wrong.
    """
    if not str(path).strip():
        raise BadInput("an empty text names no job file; allowed: a path such as configs/gpt-tiny.toml")
    path = Path(path)
    document = _site_document(site)
    resolved = path.suffix == ".json"
    document.merge(_tables(read_job(path)) if resolved else read_toml(path), path.name)
    document.merge(sections or {}, "overrides")
    for text in overrides:
        document.override(text)
    if workers is not None:
        document.replace_resources(workers, standbys)
    # What is resolved was filled in then, and the folder may be gone.
    done = resolved and document.origin("model.from_hf") == path.name
    return _checked(document, path.name, files, None if done else document.tables().get("model"))


def load_site(site: Path | None = None) -> JobConfig:
    """Read the site file's defaults over the schema's, for what needs no job: required keys may be missing.

    Raises:
        BadInput: one line for each thing that is wrong.
    """
    from liver_slurm.config.decode import decode

    document = _site_document(site)
    config, problems = decode(document.tables())
    if lines := [document.line(one, "site file") for one in problems if not one.missing]:
        raise BadInput("\n".join(lines))
    return config


def overridden(path: str | Path, site: Path | None = None) -> list[str]:
    """List the keys of the site file to which a job file gives another value.

    Raises:
        BadInput: one of them cannot be read.
    """
    path, place = Path(path), _site_path(site)
    if place is None or path.suffix == ".json":  # what is resolved has all keys
        return []
    return different_keys(_read_site(place, site), read_toml(path))


def check_job(config: JobConfig, *, files: bool = True, sections: Mapping[str, Any] | None = None) -> JobConfig:
    """Check a config that was made in Python, with ``sections`` over it; arguments and errors as :func:`load_job`.

    Returns it with its values normalised.
    """
    document = Document()
    document.merge(_tables(config), "config")
    document.merge(sections or {}, "overrides")
    defaults = _tables(JobConfig(model=ModelSection()))["model"]
    model = document.tables()["model"]
    return _checked(document, "config", files, {key: model[key] for key in model if model[key] != defaults.get(key)})


def default_run_root() -> Path:
    """Find the folder of runs when no job file is at hand: the site file's ``job.run_root``, or the schema's default.

    Raises:
        BadInput: the site file cannot be read, or its ``job.run_root`` is no path.
    """
    site = _site_path(None)
    section = _read_site(site, None).get("job", {}) if site is not None else {}
    root = section.get("run_root") if isinstance(section, dict) else None
    try:
        return Path(expand_path(root if isinstance(root, str) else JobSection.run_root))
    except ValueError as error:
        raise BadInput(f"{site}: job.run_root: {root!r} is not allowed ({error}); allowed: a path") from None


def save_job(config: JobConfig, path: Path) -> None:
    """Write a resolved job as JSON; only its user may read one that names a webhook, as its URL is a secret."""
    mode = 0o644 if config.notify.webhook is None else 0o600
    replace_file(path, msgspec.json.format(msgspec.json.encode(config), indent=1) + b"\n", mode)


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
        raise BadInput(f"{path}: not a resolved job: {one_line(error)}") from None


def _checked(document: Document, name: str, files: bool, own: Any) -> JobConfig:
    """Decode and check. ``own``: keys of [model] that its author has written; None: it is filled in already."""
    # pydantic takes longer to import than `liver-slurm status` takes in all, and workers read job.json without it.
    from liver_slurm.config.decode import decode

    tables, different = filled(document.tables(), own) if isinstance(own, dict) else (document.tables(), [])
    config, problems = decode(own_loop.with_defaults(tables))
    problems += different
    unread = any(one.key == "model.from_hf" for one in different)
    if unread or config.model.provider is not None or config.train.loop is not None:  # it may know them by itself
        problems = [one for one in problems if not (one.missing and one.key.startswith("model."))]
    # A key that is misspelt is not missing as well.
    bad = {problem.key for problem in problems if problem.spoils} | {one.meant for one in problems if one.meant}
    problems = [*problems, *cross_check(config, bad, files)]
    if problems:
        raise BadInput("\n".join(document.line(one, name) for one in problems))
    return config


def _site_document(site: Path | None) -> Document:
    document = Document()
    if (path := _site_path(site)) is not None:
        document.merge(_read_site(path, site), path.name)
    return document


def _read_site(path: Path, given: Path | None) -> dict[str, Any]:
    """Read the site file; ``given``: the caller has named it, else the environment may have."""
    if given is None and os.environ.get("LIVER_SITE") and not os.path.exists(path):
        raise BadInput(f"LIVER_SITE names {path}: no such file; allowed: a site file, or /dev/null for none")
    return read_toml(path)


def _site_path(site: Path | None) -> Path | None:
    if site is not None:
        return site
    if given := os.environ.get("LIVER_SITE"):
        return Path(given)
    default = os.path.expanduser(DEFAULT_SITE)
    try:
        os.stat(default)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        advice = "LIVER_SITE names another site file, or none: /dev/null"
        raise BadInput(f"{default}: cannot be read: {error.strerror}; {advice}") from None
    return Path(default)


def _tables(config: JobConfig) -> dict[str, Any]:
    tables: dict[str, Any] = without_none(dataclasses.asdict(config))
    return tables
