"""The worlds of a run: who was in each, from when and until when. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from liver_slurm.observability.ledger.facts import Facts
from liver_slurm.observability.ledger.gaps import disrupted_gaps
from liver_slurm.rundir.events import ReconfigurationCommitted, WorldLive


@dataclass(frozen=True)
class WorldSpan:
    """One world, from the end of the last step before it (or the start of its own first) until the next one begins."""

    generation: int
    layout: str
    members: tuple[str, ...]
    """In rank order; none, if no event says who they were."""
    begin: float
    end: float


def find_worlds(facts: Facts) -> tuple[WorldSpan, ...]:
    """Return the run's worlds in their order."""
    steps = facts.steps
    told = {
        event.generation: event
        for event in facts.events
        if isinstance(event, WorldLive | ReconfigurationCommitted) and event.generation >= 0
    }
    numbers, rows = np.unique(steps.generation, return_index=True)
    first = {number: row for number, row in zip(numbers.tolist(), rows.tolist(), strict=True) if number >= 0}
    disrupted = disrupted_gaps(facts)
    begins: dict[int, float] = {}
    latest = facts.created
    for generation in sorted({*told, *first}):
        row = first.get(generation)
        if row is None:
            begin = told[generation].time
        elif row == 0 or row - 1 in disrupted:
            begin = float(steps.start[row])
        else:
            begin = float(steps.end[row - 1])
        latest = begins[generation] = min(max(latest, begin), facts.until)
    ends = [*list(begins.values())[1:], facts.until]
    spans = []
    for (generation, begin), end in zip(begins.items(), ends, strict=False):  # without worlds, an end too many
        event = told.get(generation)
        layout = "" if event is None else str(event.layout if isinstance(event, WorldLive) else event.to)
        spans.append(WorldSpan(generation, layout, () if event is None else event.members, begin, end))
    return tuple(spans)
