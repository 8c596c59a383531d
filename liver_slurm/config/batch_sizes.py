"""Samples of each step, where the global batch grows from a smaller one, or was another in the run that is resumed.

They are functions of the step and of the job alone, and each step begins with the sample after the last one of the step
before. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
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


def uneven_batch(train: TrainSection, step: int) -> int:
    """Return the samples of a step, of ``step`` or a later one, that micro_batch_size does not divide; 0: it divides
    all.

    Only earlier batches can be such, as they are of a job that may have had another micro_batch_size.
    """
    stages = _stages(train.earlier_batches, train.rampup_batch_size, train.global_batch_size)
    ends = [*(stage.step for stage in stages[1:]), None]
    ahead = (stage.size for stage, end in zip(stages, ends, strict=True) if end is None or end > step)
    return next((size for size in ahead if size % train.micro_batch_size), 0)


def earlier_batches(train: TrainSection, resumed: TrainSection, step: int) -> tuple[tuple[int, ...], ...]:
    """Return ``train.earlier_batches`` of a run that goes on from a checkpoint of another one.

    Args:
        train: of the new run.
        resumed: of the run that wrote the checkpoint.
        step: steps that are completed in it.
    """
    parts = (*resumed.earlier_batches, (step, resumed.global_batch_size, *resumed.rampup_batch_size))
    kept = [part for part in parts if part[0] < step]
    if step > 0:
        kept.append((step, *parts[len(kept)][1:]))
    own = (train.global_batch_size, *train.rampup_batch_size)
    while kept and kept[-1][1:] == own:  # sizes follow from the samples consumed, so these are the same without it
        kept.pop()
    return tuple(kept)


def _stage(train: TrainSection, step: int) -> _Stage:
    stages = _stages(train.earlier_batches, train.rampup_batch_size, train.global_batch_size)
    return stages[bisect_right(stages, step, key=lambda stage: stage.step) - 1]


@lru_cache(maxsize=8)
def _stages(earlier: tuple[tuple[int, ...], ...], ramp: tuple[int, ...], full: int) -> list[_Stage]:
    """Return all stages: those of earlier batches, each part up to its step, and those of the job's own."""
    found, step, consumed = list[_Stage](), 0, 0
    for until, size, *grows in earlier:
        found += [stage for stage in _grown(tuple(grows), size, step, consumed) if stage.step < until]
        step, consumed = until, found[-1].consumed + (until - found[-1].step) * found[-1].size
    return [*found, *_grown(ramp, full, step, consumed)]


def _grown(ramp: tuple[int, ...], full: int, step: int, consumed: int) -> list[_Stage]:
    """Return the stages of a ramp from a step on, as Megatron counts.

    After each equal part of the ramp's samples, counted from the run's first, the batch grows once.
    """
    if not ramp:
        return [_Stage(step, consumed, full)]
    start, increment, samples = ramp
    increments = (full - start) // increment
    stages, grown = [], consumed * increments // samples
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
    key = "train.rampup_batch_size"
    if ramp and len(ramp) != 3:
        yield Problem(key, f"has {len(ramp)} numbers; allowed: three, the first batch, the increment, and samples")
    elif ramp and (ramp[0] % micro or ramp[1] % micro):
        text = f"{ramp[0]} and {ramp[1]} are not both multiples of micro_batch_size {micro}; allowed: multiples"
        yield Problem(key, text)
    elif ramp and not _leads(ramp, full):
        text = f"increments of {ramp[1]} do not lead from {ramp[0]} to global_batch_size {full}; allowed: those that do"
        yield Problem(key, text)
    yield from _earlier_problems(train.earlier_batches)


def _earlier_problems(earlier: tuple[tuple[int, ...], ...]) -> Iterator[Problem]:
    before = 0
    for number, part in enumerate(earlier):
        key = f"train.earlier_batches.{number}"
        if len(part) not in (2, 5):
            yield Problem(key, f"has {len(part)} numbers; allowed: two, the step and the batch, and three of a ramp")
            return
        until, full, *ramp = part
        if until <= before:
            yield Problem(key, f"is up to step {until}, and the part before it up to {before}; allowed: > {before}")
        if ramp and not _leads(ramp, full):
            yield Problem(key, f"increments of {ramp[1]} do not lead from {ramp[0]} to {full}; allowed: those that do")
        before = until


def _leads(ramp: Sequence[int], full: int) -> bool:
    """Return whether a ramp comes to the full batch."""
    return ramp[0] <= full and (full - ramp[0]) % ramp[1] == 0
