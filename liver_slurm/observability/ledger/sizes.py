"""Sizes over time: devices in the live world, devices that the run holds, and devices that it is offered. Pure."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from liver_slurm.observability.ledger.account import Account
from liver_slurm.observability.ledger.causes import UNHELD
from liver_slurm.observability.ledger.facts import Facts
from liver_slurm.rundir.events import CapacityChanged

Span = tuple[float, float]
Weighted = tuple[float, float, int]
"""A span, and how many devices it is of."""


@dataclass(frozen=True)
class Steps:
    """A count that changes at moments: ``counts[i]`` holds from ``times[i]`` until ``times[i + 1]``."""

    times: tuple[float, ...]
    counts: tuple[int, ...]
    """One entry fewer than ``times``."""

    def integral(self) -> float:
        """Return the count times seconds."""
        return sum(
            count * (end - start) for count, start, end in zip(self.counts, self.times, self.times[1:], strict=False)
        )

    def at(self, time: float) -> int:
        """Return the count at a moment; 0 outside."""
        place = bisect.bisect_right(self.times, time) - 1
        inside = self.counts and place >= 0 and time <= self.times[-1]
        return self.counts[min(place, len(self.counts) - 1)] if inside else 0


@dataclass(frozen=True)
class Sizes:
    """The three counts, from the run's creation to its end."""

    world: Steps
    held: Steps
    offered: Steps
    """Held, and idle ones that a standby job of the run would get at once, as far as the job file lets the run have
    them."""
    known: bool
    """Whether the event log says what was offered beyond what was held; versions before it did not."""


def find_sizes(account: Account) -> Sizes:
    """Return the sizes of a run over time."""
    facts = account.facts
    start, end = facts.created, facts.until
    queued = _queued(account)
    held: list[Weighted] = []
    standbys: list[Weighted] = []
    world: list[Weighted] = []
    for one, pieces in zip(account.presences, account.pieces, strict=True):
        for piece in pieces:
            in_world = piece.cause is None
            shared = one.guaranteed or in_world  # by the account, too, such a device is not there in the queue
            kept = _without((piece.start, piece.end), queued) if shared else [(piece.start, piece.end)]
            spans = [(begin, until, 1) for begin, until in kept]
            held += spans
            world += spans if in_world else []
            standbys += [] if one.guaranteed else spans
    told = [event for event in facts.events if isinstance(event, CapacityChanged)]
    extra = _idle(told, queued, _counted(standbys, start, end), facts)
    return Sizes(
        world=_counted(world, start, end),
        held=_counted(held, start, end),
        offered=_counted([*held, *extra], start, end),
        known=bool(told),
    )


def _queued(account: Account) -> list[Span]:
    """Return when the guaranteed job was in the queue, in order; these spans do not touch each other."""
    times, causes = account.timeline.times, account.timeline.causes
    rows = np.flatnonzero(np.isin(causes, list(UNHELD)))
    found: list[Span] = []
    for row in rows.tolist():
        begin, end = float(times[row]), float(times[row + 1])
        if found and found[-1][1] >= begin:
            begin = found.pop()[0]
        found.append((begin, end))
    return found


def _without(span: Span, queued: Sequence[Span]) -> list[Span]:
    """Return what is left of a span outside of the queue."""
    at, end = span
    left = []
    for begin, until in queued[bisect.bisect_right(queued, at, key=_end) :]:
        if begin >= end:
            break
        if begin > at:
            left.append((at, begin))
        at = until
    return [*left, (at, end)] if at < end else left


def _idle(told: Sequence[CapacityChanged], queued: Sequence[Span], standbys: Steps, facts: Facts) -> Iterator[Weighted]:
    """Yield the idle nodes that standby jobs of the run would get, as far as the job file lets it have them.

    What was seen holds until the next look, and no longer than somebody looks: nobody does in the queue.
    """
    ends = [*(event.time for event in told[1:]), facts.until]
    for event, end in zip(told, ends, strict=False):
        begin, free = event.time, sum(event.workers.values())
        next_queue = bisect.bisect_right(queued, begin, key=_end)
        if next_queue < len(queued):
            end = min(end, queued[next_queue][0])
        changes = standbys.times[bisect.bisect_right(standbys.times, begin) : bisect.bisect_left(standbys.times, end)]
        for since, until in itertools.pairwise((begin, *changes, end)):
            count = min(free, max(0, facts.job.most_standbys - standbys.at(since)))
            if until > since and count > 0:
                yield since, until, count


def _end(span: Span) -> float:
    return span[1]


def _counted(spans: Iterable[Weighted], start: float, end: float) -> Steps:
    """Count what is open at each moment from ``start`` to ``end``."""
    changes: dict[float, int] = {start: 0, end: 0}
    for begin, until, count in spans:
        changes[begin] = changes.get(begin, 0) + count
        changes[until] = changes.get(until, 0) - count
    times = sorted(changes)
    counts = itertools.accumulate(changes[time] for time in times[:-1])
    return Steps(tuple(times), tuple(counts))
