"""Sizes over time: devices in the live world, devices that the run holds, and devices that it is offered. Pure."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from liver_slurm.observability.ledger.account import Account
from liver_slurm.observability.ledger.causes import UNHELD
from liver_slurm.rundir.events import CapacityChanged


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
        return self.counts[min(place, len(self.counts) - 1)] if place >= 0 and time <= self.times[-1] else 0


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
    held = _holding(account)
    standbys = [span for span, one in held if not one]
    told = [event for event in facts.events if isinstance(event, CapacityChanged)]
    bounds = [*(event.time for event in told), end]
    idle = [(event.time, until, sum(event.workers.values())) for event, until in zip(told, bounds[1:], strict=True)]
    ours = _counted(standbys, start, end)
    changes = sorted({time for begin, until, _ in idle for time in (begin, until)} | set(ours.times))
    extra = []
    for begin, until in itertools.pairwise(changes):
        free = next((count for since, to, count in idle if since <= begin < to), 0)
        room = max(0, facts.job.most_standbys - ours.at(begin))
        extra += [(begin, until)] * min(free, room)
    spans = [span for span, _ in held]
    return Sizes(
        world=_counted(_stepping(account), start, end),
        held=_counted(spans, start, end),
        offered=_counted([*spans, *extra], start, end),
        known=bool(told),
    )


def _holding(account: Account) -> list[tuple[tuple[float, float], bool]]:
    """Return from when until when each device was there, and whether it was a guaranteed one."""
    found = []
    queued = _queued(account)
    for one in account.presences:
        since = one.since
        if one.guaranteed:
            for begin, end in queued:
                if begin <= since < end:
                    since = min(end, one.until)
        if one.until > since:
            found.append(((since, one.until), one.guaranteed))
    return found


def _queued(account: Account) -> list[tuple[float, float]]:
    """Return when the guaranteed job was in the queue."""
    times, causes = account.timeline.times, account.timeline.causes
    rows = [row for cause in UNHELD for row in (causes == cause).nonzero()[0].tolist()]
    return [(float(times[row]), float(times[row + 1])) for row in sorted(rows)]


def _stepping(account: Account) -> list[tuple[float, float]]:
    return [(piece.start, piece.end) for pieces in account.pieces for piece in pieces if piece.cause is None]


def _counted(spans: Iterable[tuple[float, float]], start: float, end: float) -> Steps:
    """Count the spans that are open at each moment from ``start`` to ``end``."""
    changes: dict[float, int] = {start: 0, end: 0}
    for begin, until in spans:
        changes[begin] = changes.get(begin, 0) + 1
        changes[until] = changes.get(until, 0) - 1
    times = sorted(changes)
    counts, count = [], 0
    for time in times[:-1]:
        count += changes[time]
        counts.append(count)
    return Steps(tuple(times), tuple(counts))
