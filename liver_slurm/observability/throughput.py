"""How fast a run trains now, from its newest metrics. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from liver_slurm.base.flops import Rates
from liver_slurm.rundir.metrics import StepMetrics

RECENT = 20
"""Steps that the rates of a status are of, at most."""


def recent_rates(steps: Sequence[StepMetrics]) -> Rates:
    """Rates of the last of these consecutive steps that one world trained.

    What passes between two steps counts: waiting for a checkpoint makes a world slower. A reconfiguration does not, as
    its pause lies between two worlds.
    """
    if not steps:
        return Rates()
    last = steps[-1]
    newest = itertools.takewhile(lambda step: step.generation == last.generation, reversed(steps))
    world = list(newest)
    seconds = last.end - world[-1].start
    if seconds <= 0.0:
        return Rates()
    tokens_per_s = sum(step.tokens for step in world) / seconds
    if not last.tokens_per_s or last.tflops is None:
        return Rates(tokens_per_s)
    # Operations of a token, ranks and peak are the same in all steps of a world.
    change = tokens_per_s / last.tokens_per_s
    return Rates(tokens_per_s, last.tflops * change, last.mfu * change if last.mfu is not None else None)
