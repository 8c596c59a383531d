"""Validations of one worker: the loss of samples that are not trained on, taken between two steps.

A validation goes through its samples batch by batch, as training does. After each, all members know how far it is and
whether one of them has a boundary to stop at. So the world can change in the midst of a validation: what is done of it
goes with those who stay, and the next world goes on from there. The sums are of the same samples in any layout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Samples, TrainingShard
from liver_slurm.rundir.validation import ValidationMetrics, last_validation, perplexity


class Progress(NamedTuple):
    """How far a worker is in the run's validations; the same on every member once a world has agreed on it."""

    step: int = -1
    """Steps trained before the last validation that was begun; -1: there was none."""
    samples: int = 0
    """That are done of it."""
    loss_sum: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    """That it took so far."""
    best_loss: float = math.inf
    best_step: int = -1
    since_best: int = 0
    """The last three count whole validations only."""

    @property
    def loss(self) -> float:
        """Mean over the tokens so far."""
        return self.loss_sum / self.tokens if self.tokens else math.nan


def begun(progress: Progress, step: int) -> Progress:
    """Return the validation at ``step``: where it stands, or its beginning."""
    if progress.step == step:
        return progress
    return progress._replace(step=step, samples=0, loss_sum=0.0, tokens=0, seconds=0.0)


def completed(progress: Progress) -> Progress:
    """Return a validation whose last sample is done: whether it is the best so far counts from now on."""
    if progress.loss < progress.best_loss:
        return progress._replace(best_loss=progress.loss, best_step=progress.step, since_best=0)
    return progress._replace(since_best=progress.since_best + 1)


class Validation:
    """Called by the training thread; any thread may ask :meth:`under_way`."""

    def __init__(self, config: JobConfig, samples: Samples, path: Path, told: Callable[[], None]) -> None:
        """
        Args:
            config: the job.
            samples: those of validation.
            path: ``validation.jsonl``, which is read once: for the best loss so far, in a run that goes on.
            told: called when training begins and ends to stand for a validation.

        Raises:
            BadInput: there are too few samples for one micro batch.
        """
        self._every, self._steps = config.validation.every, config.train.steps
        self._patience, self._keep_best = config.validation.patience, config.validation.keep_best
        self._batch, micro = config.train.global_batch_size, config.train.micro_batch_size
        self._samples, self._path = samples, path
        most = len(samples) if config.validation.samples is None else min(config.validation.samples, len(samples))
        self.total = most // micro * micro
        """Samples of each validation."""
        if not self.total:
            raise BadInput(f"validation: {most} samples are fewer than train.micro_batch_size {micro}")
        self._told, self._sample_seconds = told, 0.0
        self._agreed = -1, -1  # generation and step that the members have compared their progress at
        self._settled = -1, -1  # generation and step whose validation is done
        self._under_way: tuple[int, float] | None = None
        self.progress = Progress()
        self.reload()

    def reload(self) -> None:
        """Take what the file has: for a run that goes on from a checkpoint."""
        last = last_validation(self._path)
        self.progress = Progress()
        if last is not None:
            loss_sum = last.loss * last.tokens
            self.progress = Progress(
                last.step,
                last.samples,
                loss_sum,
                last.tokens,
                last.seconds,
                last.best_loss,
                last.best_step,
                last.since_best,
            )

    @property
    def under_way(self) -> tuple[int, float] | None:
        """Samples done and estimated seconds left of the validation that training stands for; None: it does not."""
        return self._under_way

    @property
    def gives_up(self) -> bool:
        """Whether the loss has not become better for so many validations that the run is to end."""
        return 0 < self._patience <= self.progress.since_best

    def falls_on(self, step: int) -> bool:
        """Return whether there is a validation with ``step`` steps completed; all members say the same."""
        return step > 0 and (step % self._every == 0 or step == self._steps)

    def due(self, generation: int, step: int) -> bool:
        """Return whether the world of a generation has to validate before it goes on, with ``step`` steps completed."""
        return self.falls_on(step) and self._settled != (generation, step)

    def run(self, shard: TrainingShard, step: int, interrupts: Callable[[], bool]) -> bool:
        """Validate, or go on with a validation; every member must call it.

        Args:
            shard: of the live world.
            step: steps completed.
            interrupts: asked before each batch: whether training is to stop here for something else.

        Returns:
            whether it is done; False: a member was to stop.

        Raises:
            RuntimeError: a peer is gone.
        """
        generation = shard.world.membership.generation
        if self._agreed != (generation, step):
            self.progress = _compare(shard, self.progress)
            self._agreed = generation, step
        self.progress = begun(self.progress, step)
        if self.progress.samples < self.total:  # else the world before was done with it
            if not self._go_through(shard, interrupts):
                return False
            self.progress = completed(self.progress)
        self._settled = generation, step
        return True

    def _go_through(self, shard: TrainingShard, interrupts: Callable[[], bool]) -> bool:
        """Take batch after batch; False: a member was to stop before the last."""
        self._stand()
        self._told()
        try:
            while self.progress.samples < self.total:
                interrupted = self._take_batch(shard, interrupts())
                if interrupted and self.progress.samples < self.total:
                    return False
                self._stand()
        finally:
            self._under_way = None
            self._told()
        return True

    def _stand(self) -> None:
        at = self.progress
        if at.samples:
            self._sample_seconds = at.seconds / at.samples
        self._under_way = at.samples, (self.total - at.samples) * self._sample_seconds

    def _take_batch(self, shard: TrainingShard, interrupt: bool) -> bool:
        """Return whether a member is to stop behind it."""
        before, began = self.progress, time.perf_counter()
        count = min(self._batch, self.total - before.samples)
        found = shard.evaluate(self._samples, before.samples, count, interrupt)
        self.progress = before._replace(
            samples=before.samples + count,
            loss_sum=before.loss_sum + found.loss_sum,
            tokens=before.tokens + found.tokens,
            seconds=before.seconds + time.perf_counter() - began,
        )
        return found.interrupted

    @property
    def keeps(self) -> int:
        """Step whose checkpoint is to stay, as its loss is the best so far; -1: none."""
        return self.progress.best_step if self._keep_best else -1

    def metrics(self, generation: int, layout: str) -> ValidationMetrics | None:
        """Return the last validation, if it is whole."""
        at = self.progress
        if at.step < 0 or at.samples < self.total:
            return None
        return ValidationMetrics(
            step=at.step,
            loss=at.loss,
            perplexity=perplexity(at.loss),
            tokens=at.tokens,
            samples=at.samples,
            best_step=at.best_step,
            best_loss=at.best_loss,
            since_best=at.since_best,
            seconds=round(at.seconds, 6),
            generation=generation,
            layout=layout,
            end=time.time(),
        )


def farthest(found: Sequence[Progress]) -> Progress:
    """Return the progress of the member that is farthest.

    Others were not in the world before, or were interrupted in it.
    """
    return max(found, key=lambda one: (one.step, one.samples))


def _compare(shard: TrainingShard, own: Progress) -> Progress:
    """Have all members of a world agree on the progress of the one that is farthest."""
    mine = torch.tensor(own, dtype=torch.float64)
    found = [torch.empty_like(mine) for _ in range(shard.world.layout.size)]
    dist.all_gather(found, mine, group=shard.world.groups["host"])
    whole = [isinstance(value, int) for value in Progress()]
    lists = [[int(one) if exact else one for exact, one in zip(whole, row.tolist(), strict=True)] for row in found]
    return farthest([Progress(*row) for row in lists])
