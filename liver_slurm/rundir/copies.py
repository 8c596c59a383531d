"""Where copies of a run's checkpoints lie, whether they can be written there, and which are missing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import JobConfig
from liver_slurm.rundir.checkpoints import list_checkpoints
from liver_slurm.rundir.paths import RunDir


def copies_folder(config: JobConfig, run_dir: RunDir) -> Path | None:
    """Return where copies of a run's checkpoints lie; None: it makes none."""
    place = config.checkpoint.copy_to
    return Path(place) / run_dir.path.name if place is not None else None


def check_place(config: JobConfig, make: bool) -> None:
    """Check that copies of checkpoints can be written, as a run that finds out later has none when it needs them.

    Args:
        make: make the folder and write to it; else only what is there is looked at.

    Raises:
        BadInput: they cannot.
    """
    if config.checkpoint.copy_to is None:
        return
    place = Path(config.checkpoint.copy_to)
    try:
        if make:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return
        nearest = next(one for one in (place, *place.parents) if one.exists())
    except OSError as error:
        raise _refused(place, error.strerror or str(error)) from None
    if not nearest.is_dir():
        raise _refused(place, f"{nearest} is no folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _refused(place, f"{nearest} is not writable")


def not_copied(config: JobConfig, run_dir: RunDir) -> str:
    """Name the checkpoints that have no copy, and the folder that should have it; empty: there are none."""
    if (folder := copies_folder(config, run_dir)) is None:
        return ""
    there = {one.name for one in list_checkpoints(folder)}
    missing = [one.name for one in list_checkpoints(run_dir.checkpoints) if one.name not in there]
    return f"not copied to {folder}: {', '.join(missing)}" if missing else ""


def _refused(place: Path, why: str) -> BadInput:
    return BadInput(f"checkpoint.copy_to: {place} cannot be written: {why}; allowed: a folder that can")
