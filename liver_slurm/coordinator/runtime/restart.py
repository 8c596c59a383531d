"""A run that goes back to a checkpoint: as it is restarted in its own directory, or as its live world is lost.

A restart is one record of the journal: all worlds are lost, the newest checkpoint is not. From then on generation
numbers go on, workers of the lost worlds are refused, and the next world is formed of the guaranteed workers that
register, from the checkpoint. Steps after it are trained again: their lines are taken out of ``metrics.jsonl`` in one
atomic step, so that each step is in it once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from liver_slurm.base.clock import Clock
from liver_slurm.base.errors import BadInput, ClusterError, LiverError
from liver_slurm.config.load import read_job
from liver_slurm.coordinator.core.io import CheckpointFound, FindCheckpoint, Input, RollBackMetrics
from liver_slurm.coordinator.core.records import BegunAnew
from liver_slurm.coordinator.runtime.journal import Journal
from liver_slurm.coordinator.runtime.scheduler_calls import BackgroundCalls
from liver_slurm.rundir.checkpoints import checkpoint_step, list_checkpoints, sound_checkpoints
from liver_slurm.rundir.metrics import last_metrics, take_back
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import checkpoint_folders, consumed_samples, read_run_info, trusted_paths
from liver_slurm.rundir.resume import why_other_samples
from liver_slurm.rundir.start import start_checkpoint
from liver_slurm.rundir.trust import check_trusted
from liver_slurm.scheduler.ports import JobStart

log = logging.getLogger(__name__)

Refused = dict[Path, str]
"""Checkpoints that are not used, each with the reason."""


def job_start(environment: Mapping[str, str] = os.environ) -> JobStart:
    """Return the start of the job that this process runs in."""
    return JobStart(environment.get("SLURM_JOB_ID", ""), int(environment.get("SLURM_RESTART_COUNT", "0")))


def begin_restart(run_dir: RunDir, journal: Journal, reason: str, refused: Refused) -> BegunAnew:
    """Write down that the run goes on from its newest checkpoint, or from where it began if there is none.

    Called by a coordinator that holds the journal, before workers can find it. Called again for the same reason, by one
    that takes over from a coordinator that died in the middle, it does no harm.

    Args:
        refused: checkpoints that are found unusable are entered here.

    Raises:
        BadInput: there are checkpoints, and none of them can be used.
    """
    last = last_metrics(run_dir.metrics)
    reached = last.step if last is not None else 0
    checkpoint, step = newest_usable(run_dir, reached, refused)
    record = BegunAnew(
        checkpoint=checkpoint,
        step=step,
        steps_lost=max(0, reached - step),
        reason=reason,
        trained_until=last.end if last is not None else 0.0,
    )
    journal.append(record)
    take_back(run_dir, step)
    return record


def newest_usable(run_dir: RunDir, reached: int, refused: Refused) -> tuple[str, int]:
    """Return the checkpoint that a run goes back to, and its step; nothing and 0 for one that has none and began with
    none.

    Args:
        run_dir: of the run.
        reached: the last step that is written down.
        refused: checkpoints that are found unusable are entered here.

    Raises:
        BadInput: there are checkpoints, and none of them can be used.
    """
    # One beyond the metrics is the last work of a world whose steps nobody has seen: they would never be written down.
    # It is still better than none.
    folders = checkpoint_folders(run_dir)
    for at_most in (reached, None):
        own = _sound(folders, refused, at_most)
        if own is not None:
            return str(own), checkpoint_step(own)
    if any(list_checkpoints(folder) for folder in folders):
        raise BadInput(f"none of the checkpoints in {run_dir.checkpoints} can be used; the log says why")
    return first_checkpoint(run_dir, refused)


def _sound(folders: Sequence[Path], refused: Refused, at_most: int | None = None) -> Path | None:
    known = set(refused)
    found = next(sound_checkpoints(folders, refused, at_most), None)
    for path in refused.keys() - known:
        log.warning("checkpoint %s is not used: %s", path.name, refused[path])
    return found


def first_checkpoint(run_dir: RunDir, refused: Refused) -> tuple[str, int]:
    """Return the checkpoint that the run's first world loads and its step; nothing and 0 for a run that starts from the
    seed.

    The job says which samples each step has, also those before the checkpoint that was there when it was submitted. A
    newer one is of use if its run's batches are the job's own.

    Raises:
        BadInput: the checkpoint, or the run, that it was to start from has none any more that can be used.
    """
    resumed_from, config = read_run_info(run_dir).resumed_from, read_job(run_dir.job_file)
    if not resumed_from:
        start_from = config.train.start_from
        return (str(start_checkpoint(start_from)), 0) if start_from is not None else ("", 0)
    resumed = RunDir(Path(resumed_from))
    check_trusted(trusted_paths(resumed))
    folders, before = checkpoint_folders(resumed), read_job(resumed.job_file)
    while (found := _sound(folders, refused)) is not None:
        step = checkpoint_step(found)
        other = why_other_samples(config, step, consumed_samples(found, before))
        if other is None:
            return str(found), step
        refused[found] = f"{found.name}: {other}; submit the job with --resume again"
        log.warning("it is not used, %s", refused[found])
    why = next(iter(refused.values()), "it has no complete checkpoint")
    raise BadInput(f"{resumed_from} cannot be resumed: {why}")


# ---- of a live run --------------------------------------------------------------------------------------------------


class CheckpointCalls:
    """Looks for checkpoints in a thread of its own, as they may lie on a slow file system."""

    def __init__(self, run_dir: RunDir, clock: Clock) -> None:
        self._run_dir = run_dir
        self._lane = BackgroundCalls("checkpoints", clock)

    def find(self, order: FindCheckpoint) -> None:
        """Begin to look for a checkpoint."""
        self._lane.ask(partial(self._find, order.at_most), _found, _not_found)

    def roll_back(self, order: RollBackMetrics) -> None:
        """Take the steps out of the metrics that will be trained again; all of them, or none if it fails.

        Raises:
            OSError: the file cannot be replaced, or the run directory is away.
        """
        self._run_dir.path.stat()  # a file system that is away must not look like a run without metrics
        take_back(self._run_dir, order.step)
        log.info("the steps behind %d are taken out of the metrics", order.step)

    def poll(self, now: float) -> list[Input]:
        """Return the inputs that have come of earlier orders."""
        return self._lane.poll(now)

    def close(self) -> None:
        """Wait for a search that is under way."""
        self._lane.close()

    def _find(self, at_most: int | None) -> tuple[str, int]:
        """Return the newest checkpoint that can be used and its step; nothing and 0: there is none."""
        if at_most is None:
            last = last_metrics(self._run_dir.metrics)
            at_most = last.step if last is not None else 0
        try:
            return newest_usable(self._run_dir, at_most, {})
        except LiverError as error:
            raise ClusterError(str(error)) from error


def _found(found: tuple[str, int], now: float) -> Sequence[Input]:
    path, step = found
    return [CheckpointFound(now, path, step)]


def _not_found(error: str, now: float) -> Sequence[Input]:
    return [CheckpointFound(now, why_none=error)]
