"""Samples of each step, where the global batch grows from a smaller one: functions of the step alone. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from liver_slurm.config.problem import Problem
from liver_slurm.config.train import TrainSection


class _Stage(NamedTuple):
    """From a step on the global batch has one size, until the next stage begins."""

    step: int
    consumed: int
    """Samples of all steps before."""
    size: int


def batch_size(train: TrainSection, step: int) -> int:
    """Return the samples of a step, counted from 0."""
    return _stage(train, step).size


def samples_before(train: TrainSection, step: int) -> int:
    """Return the samples of all steps before ``step``.

    It is the number of its first sample, and of those consumed once they are made.
    """
    stage = _stage(train, step)
    return stage.consumed + (step - stage.step) * stage.size


def _stage(train: TrainSection, step: int) -> _Stage:
    stages = _stages(train.rampup_batch_size, train.global_batch_size)
    return stages[bisect_right(stages, step, key=lambda stage: stage.step) - 1]


@lru_cache(maxsize=8)
def _stages(ramp: tuple[int, ...], full: int) -> list[_Stage]:
    """Return the stages of a ramp, as Megatron counts.

    After each equal part of the ramp's samples the batch grows once.
    """
    if not ramp:
        return [_Stage(0, 0, full)]
    start, increment, samples = ramp
    increments = (full - start) // increment
    stages, step, consumed, grown = [], 0, 0, 0
    while grown < increments:
        size = start + grown * increment
        stages.append(_Stage(step, consumed, size))
        end = -(-(grown + 1) * samples // increments)  # rounded up
        steps = -(-(end - consumed) // size)
        step, consumed = step + steps, consumed + steps * size
        grown = consumed * increments // samples
    return [*stages, _Stage(step, consumed, full)]


def batch_problems(train: TrainSection) -> Iterator[Problem]:
    """Find what is wrong with the sizes of batches."""
    full, micro, ramp = train.global_batch_size, train.micro_batch_size, train.rampup_batch_size
    if full % micro:
        near = max(full // micro, 1) * micro
        text = f"{full} is not a multiple of micro_batch_size {micro}; allowed: a multiple of {micro}, such as {near}"
        yield Problem("train.global_batch_size", text)
    if not ramp:
        return
    key = "train.rampup_batch_size"
    if len(ramp) != 3:
        yield Problem(key, f"has {len(ramp)} numbers; allowed: three, the first batch, the increment, and samples")
    elif ramp[0] % micro or ramp[1] % micro:
        text = f"{ramp[0]} and {ramp[1]} are not both multiples of micro_batch_size {micro}; allowed: multiples"
        yield Problem(key, text)
    elif ramp[0] > full or (full - ramp[0]) % ramp[1]:
        text = f"increments of {ramp[1]} do not lead from {ramp[0]} to global_batch_size {full}; allowed: those that do"
        yield Problem(key, text)
