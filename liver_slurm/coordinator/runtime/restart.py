"""A run that is restarted in its own directory: all its worlds are lost, the newest checkpoint is not.

The journal says so with one record. From then on generation numbers go on, workers of the lost worlds are refused, and
the next world is formed of the guaranteed workers that register, from the checkpoint. Steps after it are trained again:
their lines are taken out of ``metrics.jsonl`` in one atomic step, so that each step is in it once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from liver_slurm.base.errors import BadInput
from liver_slurm.coordinator.core.records import BegunAnew
from liver_slurm.coordinator.runtime.journal import Journal
from liver_slurm.rundir.checkpoints import checkpoint_step, newest_checkpoint
from liver_slurm.rundir.metrics import last_metrics, truncate_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import read_run_info
from liver_slurm.scheduler.ports import JobStart


def job_start(environment: Mapping[str, str] = os.environ) -> JobStart:
    """The start of the job that this process runs in."""
    return JobStart(environment.get("SLURM_JOB_ID", ""), int(environment.get("SLURM_RESTART_COUNT", "0")))


def begin_anew(run_dir: RunDir, journal: Journal, reason: str) -> BegunAnew:
    """Write down that the run goes on from its newest checkpoint, or from where it began if there is none.

    Called by a coordinator that holds the journal, before workers can find it. Called again for the same reason, by one
    that takes over from a coordinator that died in the middle, it does no harm.
    """
    last = last_metrics(run_dir.metrics)
    reached = last.step if last is not None else 0
    checkpoint, step = _newest(run_dir, reached)
    record = BegunAnew(checkpoint=checkpoint, step=step, steps_lost=max(0, reached - step), reason=reason)
    journal.append(record)
    if run_dir.metrics.exists():
        truncate_metrics(run_dir.metrics, step)
    return record


def _newest(run_dir: RunDir, reached: int) -> tuple[str, int]:
    # One beyond the metrics is the last work of a world whose steps nobody has seen: they would never be written down.
    own = newest_checkpoint(run_dir.checkpoints, at_most=reached)
    if own is not None:
        return str(own), checkpoint_step(own)
    return first_checkpoint(read_run_info(run_dir).resumed_from)


def first_checkpoint(resumed_from: str) -> tuple[str, int]:
    """The checkpoint that the run's first world loads and its step; nothing and 0 for a run that starts from the seed.

    Raises:
        BadInput: the run that it was to start from has none any more.
    """
    if not resumed_from:
        return "", 0
    folder = newest_checkpoint(RunDir(Path(resumed_from)).checkpoints)
    if folder is None:
        raise BadInput(f"{resumed_from} has no complete checkpoint to resume from")
    return str(folder), checkpoint_step(folder)
