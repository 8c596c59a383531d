"""Checkpoints on disk: what they are called, which of them are complete, and removing old ones.

A checkpoint is a folder ``step-N`` with a ``liver.json`` in it. It is written under another name, and gets its own when
all of it is on disk; it loses it before any of it is removed. So one that has its name is complete.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from liver_slurm.base.errors import BadInput
from liver_slurm.base.files import replace_file, sync_folder

_PREFIX = "step-"
_META = "liver.json"
_REMOVED = ".removed"


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lies."""
    return folder / f"{_PREFIX}{step:08d}"


def checkpoint_step(checkpoint: Path) -> int:
    """Steps that are completed in a checkpoint, by its name."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [meta.parent for meta in folder.glob(f"{_PREFIX}*/{_META}")]
    return sorted((one for one in found if one.name.removeprefix(_PREFIX).isdecimal()), key=checkpoint_step)


def newest_checkpoint(folder: Path, at_most: int | None = None) -> Path | None:
    """The newest complete checkpoint; ``at_most``: of those with so many steps or fewer. None: there is none."""
    found = [one for one in list_checkpoints(folder) if at_most is None or checkpoint_step(one) <= at_most]
    return found[-1] if found else None


def part_path(path: Path) -> Path:
    """The folder in which the files of checkpoint ``path`` are written."""
    return path.with_name(f".{path.name}.part")


def begin_checkpoint(path: Path) -> None:
    """Make :func:`part_path`, empty."""
    shutil.rmtree(part_path(path), ignore_errors=True)
    part_path(path).mkdir(parents=True)


def publish_checkpoint(path: Path, meta: dict[str, Any]) -> None:
    """Make a checkpoint count whose files are all on disk; so is its name when this returns.

    One that had the name is replaced. ``meta``: what ``liver.json`` says.
    """
    part = part_path(path)
    replace_file(part / _META, msgspec.json.encode(meta))
    remove_checkpoint(path)
    os.replace(part, path)
    sync_folder(path.parent)


def read_meta(path: Path) -> dict[str, Any]:
    """What a checkpoint's ``liver.json`` says.

    Raises:
        BadInput: there is none, or it cannot be read.
    """
    try:
        return msgspec.json.decode((path / _META).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise BadInput(f"{path} is no checkpoint of liver-slurm: {error}") from error


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` complete checkpoints, and what earlier removals have left half done."""
    for path in list_checkpoints(folder)[: -keep or None]:
        remove_checkpoint(path)
    for left in folder.glob(f".{_PREFIX}*{_REMOVED}"):
        shutil.rmtree(left)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint: first it stops to count, then its files go. One that is not there is no error."""
    doomed = path.with_name(f".{path.name}{_REMOVED}")
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        os.replace(path, doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed)
