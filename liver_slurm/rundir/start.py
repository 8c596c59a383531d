"""Where a run begins that is given weights: ``train.start_from``."""

from __future__ import annotations

import logging
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from liver_slurm.base.errors import BadInput
from liver_slurm.config.load import read_job
from liver_slurm.config.schema import JobConfig, ModelSection
from liver_slurm.rundir import resume
from liver_slurm.rundir.checkpoint_index import DamagedError
from liver_slurm.rundir.checkpoints import read_meta, verify
from liver_slurm.rundir.paths import RunDir

log = logging.getLogger(__name__)
_MODEL, _WINDOW, _MOMENTS = "model", "window", "moments"
"""Keys of an import's ``liver.json``: the keys of ``[model]`` that it is of, the longest sequence that it can be
trained with, and whether it has moments."""


def import_meta(model: ModelSection, window: int | None, moments: bool = False) -> dict[str, Any]:
    """Return what ``liver.json`` of imported weights says of their model, and whether it has moments, too."""
    return {_MODEL: asdict(model), _WINDOW: window, _MOMENTS: moments}


def check_start(config: JobConfig) -> None:
    """Check that a run can begin at step 0, with the checkpoint of ``train.start_from`` if it names one.

    Raises:
        BadInput: it cannot; a line for each reason.
    """
    if (uneven := resume.why_other_samples(config, 0, 0)) is not None:
        raise BadInput(f"train.earlier_batches: {uneven}")
    if config.train.start_from is None:
        return
    path = start_checkpoint(config.train.start_from)
    meta = read_meta(path)
    problems, imported = [], meta.get(_MODEL)
    if isinstance(imported, dict):
        known = {field.name for field in fields(ModelSection)}
        problems += [
            f"train.start_from: {path} is of a newer version of liver-slurm, whose model.{key} is not known here"
            for key, value in imported.items()
            if key not in known and value
        ]
        model = ModelSection(**{key: value for key, value in imported.items() if key in known})
        problems += resume.other_model(config, JobConfig(model=model), f"in {path}")
        if config.train.start_optimizer == "loaded" and not meta.get(_MOMENTS):
            problems.append(
                f'train.start_optimizer: "loaded" is not allowed: {path} has weights alone; allowed: "fresh"'
            )
        window = meta.get(_WINDOW)
        if isinstance(window, int) and config.train.seq_length > window:
            text = f"is above the sliding window of the model in {path}; allowed: at most {window}"
            problems.append(f"train.seq_length: {config.train.seq_length} {text}")
    elif (job := RunDir(path.parent.parent).job_file).is_file():
        problems += resume.other_model(config, read_job(job), f"in {job}")
    else:
        log.warning("train.start_from: no job file says which model %s is of; shapes alone are compared", path)
    if problems:
        raise BadInput("\n".join(problems))


def start_checkpoint(start_from: str) -> Path:
    """Return the checkpoint that ``train.start_from`` names.

    Raises:
        BadInput: it is none, or not all of its files are there.
    """
    path = Path(start_from)
    try:
        verify(path, contents=False)  # digests are compared as it is read
    except DamagedError as error:
        raise BadInput(
            f"train.start_from: {path} cannot be used: {error}; allowed: a folder that `liver-slurm import` made, or "
            "RUN/checkpoints/step-N"
        ) from None
    return path
