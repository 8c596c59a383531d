"""A run that begins anew in its own directory: all its worlds are lost, the newest checkpoint is not.

The journal says so with one record. From then on generation numbers go on, workers of the lost worlds are refused, and
the next world is formed of the live workers that register, from the checkpoint. Steps after it are trained again: their
lines are taken out of ``metrics.jsonl`` in one atomic step, so that each step is in it once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from liver_slurm.config.rundir import RunDir
from liver_slurm.config.runs import checkpoint_step, newest_checkpoint, read_run_info
from liver_slurm.coordinator.journal import Journal
from liver_slurm.coordinator.records import BegunAnew, Committed, Ended, EpochStarted, Record
from liver_slurm.errors import BadInput
from liver_slurm.observe.metrics import last_metrics, truncate_metrics


@dataclass(frozen=True)
class JobStart:
    """One start of a Slurm job: a job that is requeued starts again under the same id."""

    job_id: str = ""
    """Empty: no Slurm job."""
    restarts: int = 0


def job_start(environment: Mapping[str, str] = os.environ) -> JobStart:
    """The start of the job that this process runs in."""
    return JobStart(environment.get("SLURM_JOB_ID", ""), int(environment.get("SLURM_RESTART_COUNT", "0")))


def why_anew(records: Sequence[Record], start: JobStart) -> str | None:
    """Why the coordinator of ``start`` cannot go on with the journal's live world; None: it can, or there is none.

    A job that is started again has none of its old processes. That also holds for a run that failed: whoever has Slurm
    start its job again wants it to go on. One that finished, or was cancelled on request, stays so.
    """
    last = next((record for record in reversed(records) if isinstance(record, EpochStarted)), None)
    if last is not None and start.job_id and last.job_id and last.job_id != start.job_id:
        return _why_not_succeed(records, last.job_id, start.job_id)
    if last is None or not start.job_id or last.job_id != start.job_id or last.restarts >= start.restarts:
        return None
    ended = next((record for record in reversed(records) if isinstance(record, Ended | BegunAnew)), None)
    if isinstance(ended, Ended) and ended.code != 1:
        return None
    return f"job {start.job_id} was requeued: start {start.restarts + 1}"


def _why_not_succeed(records: Sequence[Record], before: str, job_id: str) -> str | None:
    """Why the successor cannot go on with the live world: it is not made of its own workers and standbys yet.

    It may be, although nothing was handed over, if the job before was killed after its last commit record.
    """
    last = next((one for one in reversed(records) if isinstance(one, Committed | BegunAnew | Ended)), None)
    if not isinstance(last, Committed):
        return None
    own = live_names(job_id) + "-"
    lost = [member for member in last.members if member.startswith("live-") and not member.startswith(own)]
    return f"job {before} ended before job {job_id} could take over" if lost else None


def live_names(job_id: str) -> str:
    """First part of the names of a successor's workers, as its batch script gives them."""
    return f"live-{job_id}"


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
    own = newest_checkpoint(run_dir, at_most=reached)
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
    folder = newest_checkpoint(RunDir(Path(resumed_from)))
    if folder is None:
        raise BadInput(f"{resumed_from} has no complete checkpoint to resume from")
    return str(folder), checkpoint_step(folder)
