"""Samples that a run trains, counted as they are trained: a figure that never falls. Pure."""

from __future__ import annotations

from liver_slurm.config.batch_sizes import batch_size
from liver_slurm.config.train import TrainSection
from liver_slurm.rundir.metrics import StepMetrics


class Trained:
    """Counts the samples of steps that end from a moment on, also of those that are trained again after a loss."""

    def __init__(self, train: TrainSection, since: float) -> None:
        """``since``: seconds since the epoch."""
        self._train, self._until = train, since
        self.samples = 0

    def add(self, step: StepMetrics) -> None:
        """Take in a line of the metrics; one that was read before, as its file was replaced, counts once."""
        if step.end > self._until:
            self._until = step.end
            self.samples += batch_size(self._train, step.step - 1)
