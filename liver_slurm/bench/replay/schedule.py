"""Which node is wanted when, and until when: what is replayed for real, and the trace of it that is simulated. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from liver_slurm.simulation.trace import Span, Trace, from_spans

GAPS = (30.0, 60.0)
"""Seconds from one reclaim to the next."""
AWAY = (15.0, 40.0)
"""Seconds for which a node is away, once its notice is over."""


@dataclass(frozen=True)
class Reclaim:
    """Production wants one node. Times are seconds since the trace's beginning."""

    at: float
    """When its job is submitted, which is the notice."""
    until: float
    """When the job ends, however early it has begun: what is given back early is idle for nobody."""
    node: int
    """From 0."""


def draw(seconds: float, nodes: int, notice: float, seed: int) -> tuple[Reclaim, ...]:
    """Draw the reclaims of a trace: each of a node that is there, and none of which the end lies outside."""
    lot = Random(f"replay {seed}")
    back = [0.0] * nodes
    found: list[Reclaim] = []
    now = 0.0
    while (now := now + lot.uniform(*GAPS)) + notice < seconds:
        node = lot.choice([number for number in range(nodes) if back[number] <= now] or [back.index(min(back))])
        at = max(now, back[node])
        back[node] = at + notice + lot.uniform(*AWAY)
        found.append(Reclaim(round(at, 1), round(back[node], 1), node))
    return tuple(found)


def trace_of(reclaims: Sequence[Reclaim], seconds: float, nodes: int, notice: float) -> Trace:
    """Return the trace: a node is on offer until its notice is over, and from the end of the job that wanted it."""
    spans: list[Span] = []
    for number in range(nodes):
        begin = 0.0
        for one in (one for one in reclaims if one.node == number):
            spans.append(Span(f"node{number}", begin, one.at + notice))
            begin = one.until
        spans.append(Span(f"node{number}", begin, seconds))
    return from_spans("replay", seconds, spans)
