"""What the coordinator does with checkpoints and metrics when the run goes back to one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from liver_slurm.base.clock import Clock
from liver_slurm.base.errors import ClusterError, LiverError
from liver_slurm.coordinator.core.io import CheckpointFound, FindCheckpoint, Input, RollBackMetrics
from liver_slurm.coordinator.runtime.background_calls import BackgroundCalls
from liver_slurm.coordinator.runtime.restart import newest_usable
from liver_slurm.rundir.metrics import take_back
from liver_slurm.rundir.paths import RunDir

log = logging.getLogger(__name__)


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
        """Inputs that have come of earlier orders."""
        return self._lane.poll(now)

    def close(self) -> None:
        """Wait for a search that is under way."""
        self._lane.close()

    def _find(self, at_most: int) -> tuple[str, int]:
        """The newest checkpoint that can be used and its step; nothing: there is none."""
        try:
            return newest_usable(self._run_dir, at_most, {})
        except LiverError as error:
            raise ClusterError(str(error)) from error


def _found(found: tuple[str, int], now: float) -> Sequence[Input]:
    path, step = found
    return [CheckpointFound(now, path, step, why_none="" if path else "there is no checkpoint yet")]


def _not_found(error: str, now: float) -> Sequence[Input]:
    return [CheckpointFound(now, why_none=error)]
