"""How fast a run trains now, from its newest metrics. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from liver_slurm.base.flops import Rates
from liver_slurm.rundir.metrics import StepMetrics

RECENT = 20
"""Steps that the rates of a status are of, at most."""


def recent_rates(steps: Sequence[StepMetrics]) -> Rates:
    """Return the rates of the last of these consecutive steps that one world trained.

    What passes between two steps counts: waiting for a checkpoint makes a world slower. A reconfiguration does not, as
    its pause lies between two worlds.
    """
    if not steps:
        return Rates()
    last = steps[-1]
    world = _of_one_world(steps)
    seconds = last.end - world[-1].start
    if seconds <= 0.0:
        return Rates()
    tokens_per_s = sum(step.tokens for step in world) / seconds
    if not last.tokens_per_s or last.tflops is None:
        return Rates(tokens_per_s)
    # Operations of a token, ranks and peak are the same in all steps of a world.
    change = tokens_per_s / last.tokens_per_s
    return Rates(tokens_per_s, last.tflops * change, last.mfu * change if last.mfu is not None else None)


@dataclass(frozen=True)
class Pace:
    """How fast steps follow one another; None: not known."""

    step_seconds: float | None = None
    """From one step to the next, in the live world."""
    remaining_s: float | None = None
    """Until the last step is trained, if all goes on like this."""


def pace(steps: Sequence[StepMetrics], done: int, total: int) -> Pace:
    """Say how fast the last of these consecutive steps were that one world trained.

    Args:
        steps: the newest, in order; :data:`RECENT` of them are looked at.
        done: steps that are completed.
        total: steps of the whole run.
    """
    world = _of_one_world(steps[-RECENT:])
    if len(world) > 1:
        seconds = (world[0].end - world[-1].end) / (len(world) - 1)
    else:
        seconds = world[0].end - world[0].start if world else 0.0
    if seconds <= 0.0:
        return Pace()
    return Pace(seconds, max(0, total - done) * seconds)


def _of_one_world(steps: Sequence[StepMetrics]) -> list[StepMetrics]:
    """Return the steps that the last world has trained, newest first."""
    return list(itertools.takewhile(lambda step: step.generation == steps[-1].generation, reversed(steps)))
