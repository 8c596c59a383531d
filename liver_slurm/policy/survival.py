"""How long standby jobs have stayed, and how long those that are there may be expected to. Pure.

The hazard, the chance a second of being taken away, is estimated by a life table (Berkson and Gage, 1950: deaths over
time under observation, a rate for each interval of age), with gamma priors: as if one life had ended after ``expected``
seconds of observation, and in each interval one at the rate of all ages together::

    overall        = (1 + deaths) / (expected + seconds of all lives)
    rate(interval) = (1 + deaths in it) / (1 / overall + seconds of age that all lives spent in it)

With no observation the expected remaining life is ``expected`` whatever the age; each observation moves it. Lives that
still go on, or that we ended ourselves, count with their time but not as deaths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

EDGES = (0.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""Ages in seconds at which an interval begins; the last one has no end."""
CROWD = 5.0
"""Standbys that are taken within so many seconds of each other are taken by one and the same wish."""
OFTEN = 3
"""So many short lives in a row are often."""
LONGEST_REST = 3600.0
"""Seconds that a partition is left alone at most."""


@dataclass(frozen=True)
class Life:
    """One standby job's time with us."""

    job_id: str
    partition: str
    began: float
    """When its first worker was ready, seconds since the epoch."""
    ended: float | None = None
    """When word came that it goes away, or it was gone; None: it is still there."""
    taken: bool = False
    """It ended without our doing."""
    failed: bool = False
    """It ended without our doing before a worker of it was ready."""
    ordered: float = 0.0
    """When one that failed was ordered, seconds since the epoch; 0.0: not known."""

    def seconds(self, now: float) -> float:
        """Return how long it has lasted."""
        return max(0.0, (now if self.ended is None else self.ended) - self.began)


def hazards(lives: Sequence[Life], expected: float, now: float) -> tuple[float, ...]:
    """Return the rate of being taken, per second, in each interval of age."""
    deaths, exposure = [0.0] * len(EDGES), [0.0] * len(EDGES)
    for life in lives:
        age = life.seconds(now)
        for index, low in enumerate(EDGES):
            high = EDGES[index + 1] if index + 1 < len(EDGES) else math.inf
            exposure[index] += max(0.0, min(age, high) - low)
            deaths[index] += life.taken and low <= age < high
    overall = (1.0 + sum(deaths)) / (expected + sum(exposure))
    return tuple((1.0 + died) / (1.0 / overall + time) for died, time in zip(deaths, exposure, strict=True))


def until_first_leaves(rates: Sequence[float], ages: Sequence[float]) -> float:
    """Return the expected seconds until the first of several standby jobs of these ages is taken; infinity for no jobs.

    The integral of the probability that all are still there, which is exact, as rates change only at :data:`EDGES`.
    """
    if not ages:
        return math.inf
    turns = sorted({0.0, *(edge - age for edge in EDGES for age in ages if edge > age)})
    expected, alive = 0.0, 1.0
    for index, begin in enumerate(turns):
        rate = sum(rates[_interval(age + begin)] for age in ages)
        if index + 1 == len(turns):
            return expected + alive / rate
        kept = math.exp(-rate * (turns[index + 1] - begin))
        expected += alive * (1.0 - kept) / rate
        alive *= kept
    return expected


def _interval(age: float) -> int:
    return max(index for index, edge in enumerate(EDGES) if edge <= age + 1e-6)


def resting(lives: Sequence[Life], now: float, hold: float, back_off: float) -> dict[str, tuple[float, int]]:
    """Return the partitions that are left alone because they take standbys back too soon: until when, and short lives
    in a row.

    A life is short under ``hold`` seconds. After :data:`OFTEN` in a row the partition rests ``back_off`` seconds from
    the last one's end, doubled with each further one, up to :data:`LONGEST_REST`; a longer life makes it good again.
    Where many standbys run, some are always taken: it rests only while their mean life since then, the time of all over
    the number that were taken, is short as well.
    """
    rests = {}
    for partition in sorted({life.partition for life in lives}):
        row, mean = _short_in_a_row([life for life in lives if life.partition == partition], now, hold)
        if len(row) >= OFTEN and mean < hold:
            until = row[0] + min(back_off * 2.0 ** min(len(row) - OFTEN, 30), LONGEST_REST)
            if now < until:
                rests[partition] = (until, len(row))
    return rests


def failing(lives: Sequence[Life], now: float, back_off: float) -> dict[str, tuple[float, int]]:
    """Return the partitions in which standby jobs fail as they start: until when they are left alone, and how many
    failed in a row.

    After :data:`OFTEN` since the last that came to have a worker, one is tried after ``back_off`` seconds, see
    :func:`on_trial`, the next after twice as many, up to :data:`LONGEST_REST`.

    Args:
        lives: in the order in which they began.
    """
    found = {}
    for partition in sorted({life.partition for life in lives if life.failed}):
        count = failed_in_a_row(lives, partition)
        if count >= OFTEN:
            last = max(life.began for life in lives if life.failed and life.partition == partition)
            until = last + min(back_off * 2.0 ** min(count - OFTEN, 30), LONGEST_REST)
            if now < until:
                found[partition] = (until, count)
    return found


def failed_in_a_row(lives: Sequence[Life], partition: str) -> int:
    """Count the newest in a partition, up to one that came to have a worker.

    Those of one order count once, however long it took until all had failed, and so does a crowd.
    """
    of_it = (life for life in reversed(lives) if life.partition == partition)
    occasions: list[float] = []
    orders = {0.0}
    for life in takewhile(lambda life: life.failed, of_it):
        if life.ordered not in orders or (not life.ordered and not _in_crowd(life, occasions)):
            occasions.append(life.began)
            orders.add(life.ordered)
    return len(occasions)


def _in_crowd(life: Life, occasions: Sequence[float]) -> bool:
    return bool(occasions) and occasions[-1] - life.began <= CROWD


def on_trial(lives: Sequence[Life]) -> frozenset[str]:
    """Return the partitions in which standby jobs failed :data:`OFTEN` as they started, and none has come to have a
    worker since: those that do not rest are tried with one job at a time.
    """
    failed = {life.partition for life in lives if life.failed}
    return frozenset(partition for partition in failed if failed_in_a_row(lives, partition) >= OFTEN)


def _short_in_a_row(lives: Sequence[Life], now: float, hold: float) -> tuple[list[float], float]:
    """Return the ends of the newest lives that were all short, newest first, and their mean; a crowd has one end."""
    ends: list[float] = []
    seconds, taken = 0.0, 0
    for life in sorted(lives, key=lambda one: now if one.ended is None else one.ended, reverse=True):
        if life.seconds(now) >= hold:
            break
        seconds, taken = seconds + life.seconds(now), taken + (life.taken and life.ended is not None)
        if life.taken and life.ended is not None and (not ends or ends[-1] - life.ended > CROWD):
            ends.append(life.ended)
    return ends, seconds / taken if taken else math.inf
