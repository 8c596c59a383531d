"""How many steps before a cutover state begins to leave: late enough to be cheap, early enough to have arrived.

Each step after its box has left costs a box a third of its bytes again, as a gradient. So state is streamed in the last
few steps only, and where the wire cannot keep up with training, the pause takes what is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from liver_slurm.protocol.messages import Prepared

MOST_STEPS = 4
"""Beyond these, gradients take most of what another step would give."""
GRADIENT_SHARE = 1 / 3
"""Of a box's state: 4 bytes of 12 an element."""
RESERVE = 1.0
"""Seconds before a deadline that are left for the vote, the commit and the leavers' end."""
ENOUGH = 1.1
"""Exposed time within this factor of the least is as good."""


@dataclass(frozen=True)
class StreamSchedule:
    """``steps``: how many steps before the cutover state begins to leave; 0: it moves in the pause."""

    steps: int
    wire_s: float
    """Seconds that the state takes on the wire, for the worker that it takes longest."""
    exposed_s: float
    """Seconds that training is expected to stand still."""
    reason: str


def wire_seconds(votes: Iterable[Prepared]) -> float:
    """Return how long the state is on its way to the worker that waits longest, at the rates that were probed."""
    return max((vote.state_bytes / vote.rate for vote in votes if vote.rate > 0), default=0.0)


def schedule(wire_s: float, step_s: float, left_s: float, steps_left: int) -> StreamSchedule:
    """Choose the number of steps.

    Args:
        wire_s: see :func:`wire_seconds`; 0.0: nothing has to move.
        step_s: seconds of a step; 0.0: not known yet.
        left_s: seconds until a worker that holds state will be gone; infinity if none will.
        steps_left: steps that may be trained before the cutover at most.
    """
    if wire_s == 0:
        return StreamSchedule(0, wire_s, 0.0, "no state has to go from one worker to another")
    exposed = [_exposed(wire_s, step_s or wire_s, steps) for steps in range(MOST_STEPS + 1)]
    # One step more than those: the one that training is in.
    in_time = [
        steps
        for steps in range(MOST_STEPS + 1)
        if steps <= steps_left and (steps + 1) * step_s + exposed[steps] + RESERVE <= left_s
    ]
    figures = f"state takes {wire_s:.3g} s on the wire, a step {step_s:.3g} s"
    if not any(in_time):
        why = "no step is left before the cutover" if steps_left < 1 else f"a worker is gone in {left_s:.3g} s"
        return StreamSchedule(0, wire_s, wire_s, f"in the pause: {figures}, and {why}")
    least = min(exposed[steps] for steps in in_time)
    steps = min(steps for steps in in_time if exposed[steps] <= ENOUGH * least)
    ahead = "one step" if steps == 1 else f"{steps} steps"
    return StreamSchedule(steps, wire_s, exposed[steps], f"{ahead} before the cutover: {figures}")


def _exposed(wire_s: float, step_s: float, steps: int) -> float:
    """Return the seconds that training stands if boxes leave during ``steps`` steps.

    It is the wait in hooks, then what is left.
    """
    arrived = waited = 0.0
    for _ in range(steps):
        gradients = arrived * wire_s * GRADIENT_SHARE
        arrived = min(1.0, arrived + max(0.0, step_s - gradients) / wire_s)
        waited += max(0.0, gradients - step_s)
    return waited + (1 - arrived) * wire_s + arrived * wire_s * GRADIENT_SHARE
