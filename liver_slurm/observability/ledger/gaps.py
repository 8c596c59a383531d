"""Gaps in which a world was lost, and the ways from the run's creation to its first step and from its last to its end.

Each is walked from event to event. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from liver_slurm.observability.ledger.causes import Cause
from liver_slurm.observability.ledger.facts import Facts
from liver_slurm.rundir.events import (
    BegunAnew,
    CheckpointWritten,
    CoordinatorStarted,
    Event,
    Interrupted,
    RecoveryPlanned,
    RunEnded,
    UnknownEvent,
    WorkerLost,
    WorldFailed,
    WorldLive,
)

Found = Event | UnknownEvent
Segments = list[tuple[float, Cause]]
"""Start and cause of each, in order."""
WAITING = (Cause.QUEUE, Cause.REQUEUE)


def is_disruption(event: Found) -> bool:
    """Return whether what is trained may end here: a world is lost, or the job's processes start or end."""
    if isinstance(event, CoordinatorStarted):
        return is_new_start(event)
    if isinstance(event, WorkerLost):
        return event.in_world
    return isinstance(event, BegunAnew | Interrupted | RecoveryPlanned | RunEnded | WorldFailed)


def is_new_start(event: CoordinatorStarted) -> bool:
    """Return whether the guaranteed job's processes start with this coordinator.

    One that is restarted finds a live world.
    """
    return event.phase == "starting"


def disrupted_gaps(facts: Facts) -> dict[int, tuple[Found, ...]]:
    """Return the disruptions in each gap that has some; gap ``i`` is behind row ``i`` of the steps, -1 before them all.

    One that falls into a step that was completed counts for the gap behind it.
    """
    steps = facts.steps
    found: dict[int, list[Found]] = {}
    for event in facts.events:
        if is_disruption(event):
            gap = int(np.searchsorted(steps.end, event.time, side="right")) - 1
            if gap + 1 < len(steps) and event.time > steps.start[gap + 1]:
                gap += 1
            found.setdefault(gap, []).append(event)
    return {gap: tuple(events) for gap, events in found.items()}


class GapWalk:
    """Turns a gap and its events into segments."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._last_start = max(
            (event.time for event in facts.events if isinstance(event, CoordinatorStarted) and is_new_start(event)),
            default=-np.inf,
        )
        self._saved = {event.step: event.time for event in facts.events if isinstance(event, CheckpointWritten)}
        self._validated = {one.step: one.end for one in facts.validations if one.seconds > 0.0}
        self._prepared = {event.generation: event.prepare_s for event in facts.events if isinstance(event, WorldLive)}

    def segments(self, gap: int, start: float, end: float, events: Sequence[Found]) -> Segments:
        """Return the segments from ``start`` to ``end``, the bounds of gap ``gap``; ``events``: its disruptions."""
        found = self._begin(gap, start, events)
        for event in events:
            self._take(found, gap, event)
        self._first_world(found, gap, end)
        return self._within(found, start, end)

    def _begin(self, gap: int, start: float, events: Sequence[Found]) -> Segments:
        facts = self._facts
        if gap < 0:
            return [(start, Cause.QUEUE if facts.job.on_slurm else Cause.START)]
        validated = self._validated.get(int(facts.steps.step[gap]), start)
        if start < validated and not any(event.time < validated for event in events):
            return [(start, Cause.VALIDATION), *self._after(gap, validated, events)]
        return self._after(gap, start, events)

    def _after(self, gap: int, start: float, events: Sequence[Found]) -> Segments:
        """Return what begins after the last step before a gap, and its validation."""
        facts = self._facts
        tail = gap == len(facts.steps) - 1
        if tail and facts.outcome == "training" and not events:
            return [(start, Cause.IN_FLIGHT)]
        saved = self._saved.get(int(facts.steps.step[gap]))
        lost = any(isinstance(event, BegunAnew) and event.steps_lost for event in events)
        cut_off = lost or any(isinstance(event, WorkerLost) for event in events)
        if saved is not None and not cut_off and saved >= start:
            return [(start, Cause.CHECKPOINT), (saved, Cause.ENDING)]
        finished = tail and facts.outcome == "finished"
        return [(start, Cause.ENDING if finished else Cause.WASTED)]

    def _take(self, found: Segments, gap: int, event: Found) -> None:
        """Go on at one event."""
        cause = found[-1][1]
        if isinstance(event, CoordinatorStarted):
            # Slurm may know better than the coordinator when the job began, if it waited until then.
            since = event.job_started if event.job_started and cause in WAITING else event.time
            found.append((since, Cause.START if gap < 0 else Cause.RECOVERY))
        elif isinstance(event, BegunAnew):
            # No process has outlived this: the job starts anew, and since the last sign of life it was not there, even
            # if that told of a loss which the run still meant to recover from.
            if cause not in WAITING:
                found.append((self._last_sign(event), Cause.REQUEUE))
        elif isinstance(event, Interrupted | RunEnded):
            more = self._last_start > event.time
            pending = isinstance(event, Interrupted) or more
            found.append((event.time, Cause.REQUEUE if pending else Cause.ENDING))
        elif cause not in WAITING and gap >= 0:
            found.append((event.time, Cause.RECOVERY))

    def _last_sign(self, begun: BegunAnew) -> float:
        """Return when the worlds that are lost were last heard of."""
        before = [event.time for event in self._facts.events if event.time < begun.time]
        return max([begun.trained_until, *before[-1:]])

    def _first_world(self, found: Segments, gap: int, end: float) -> None:
        """Split the end of a start: processes first, then the first world."""
        steps = self._facts.steps
        if found[-1][1] is not Cause.START or gap + 1 >= len(steps):
            return
        prepared = self._prepared.get(int(steps.generation[gap + 1]), 0.0)
        if prepared > 0.0:
            found.append((max(found[-1][0], end - prepared), Cause.FIRST_WORLD))

    def _within(self, found: Segments, start: float, end: float) -> Segments:
        """Keep the segments inside the gap and in order."""
        kept: Segments = []
        for since, cause in found:
            start = min(max(start, since), end)
            kept.append((start, cause))
        return kept
