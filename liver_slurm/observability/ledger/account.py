"""The account of a run: the device-seconds of every worker in every world, by cause. Pure.

A member of a world does what the run's timeline says; a device in no world does what its own marks say. Each moment of
each presence is counted once, so that the account adds up to the presences, whatever the events say.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from liver_slurm.observability.ledger.causes import OF_THE_RUN, UNHELD, Cause, Seconds, add
from liver_slurm.observability.ledger.facts import Facts
from liver_slurm.observability.ledger.presence import Presence, find_presences
from liver_slurm.observability.ledger.timeline import Timeline, build
from liver_slurm.observability.ledger.worlds import WorldSpan, find_worlds

NO_WORLD = -1


@dataclass(frozen=True)
class Piece:
    """A part of a presence in which one thing holds."""

    start: float
    end: float
    generation: int
    """Of the world that the worker was in; :data:`NO_WORLD`: none."""
    cause: Cause | None
    """What it did in no world; None: it was in one, and the run's timeline says."""


@dataclass(frozen=True)
class Account:
    """What a ledger is made of."""

    facts: Facts
    timeline: Timeline
    worlds: tuple[WorldSpan, ...]
    presences: tuple[Presence, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    """Of each presence, in order; they touch each other."""
    spent: tuple[dict[int, Seconds], ...]
    """Of each presence, its seconds by generation and cause."""

    def total(self) -> Seconds:
        """Sum over all devices."""
        total: Seconds = {}
        for by_generation in self.spent:
            for seconds in by_generation.values():
                add(total, seconds)
        return total

    def of_the_run(self) -> Seconds:
        """Sum the run's own timeline: seconds, not device-seconds."""
        return self.timeline.seconds(self.facts.created, self.facts.until)


def make_account(facts: Facts) -> Account:
    """Fold the facts of a run."""
    timeline = build(facts)
    worlds = find_worlds(facts)
    presences = find_presences(facts, worlds)
    spans: dict[str, list[WorldSpan]] = defaultdict(list)
    for world in worlds:
        for name in world.members:
            spans[name].append(world)
    pieces = tuple(tuple(_pieces(one, spans[one.worker])) for one in presences)
    spent = tuple(_spent(timeline, one, of_one) for one, of_one in zip(presences, pieces, strict=True))
    return Account(facts, timeline, worlds, presences, pieces, spent)


def held(seconds: Seconds) -> float:
    """Return the device-seconds in which a device was there: all but those in a queue."""
    return sum(one for cause, one in seconds.items() if cause not in UNHELD)


def _pieces(one: Presence, spans: list[WorldSpan]) -> list[Piece]:
    """Cut a presence at its worlds and, between them, at its marks."""
    found: list[Piece] = []
    at = one.since
    for world in spans:
        begin, end = max(at, world.begin), min(one.until, world.end)
        if end <= begin:
            continue
        if begin > at:
            found += _outside(one, at, begin)
        found.append(Piece(begin, end, world.generation, None))
        at = end
    if at < one.until:
        found += _outside(one, at, one.until)
    return found


def _outside(one: Presence, start: float, end: float) -> list[Piece]:
    """Return the pieces of a time in no world."""
    first = start == one.since
    if first:
        cause = Cause.IDLE if one.guaranteed else Cause.STANDBY_START
    else:  # it has just left a world: marks from before then say nothing any more
        noticed = [comes for time, comes in one.noticed if time <= start]
        cause = Cause.LEAVING if noticed and noticed[-1] else Cause.IDLE
    edges = [(start, cause)]
    for time, then in one.marks:
        if time < end and (time > start or (first and time <= start)):
            edges.append((max(time, start), then))
    bounds = [*(time for time, _ in edges[1:]), end]
    return [
        Piece(begin, until, NO_WORLD, what) for (begin, what), until in zip(edges, bounds, strict=True) if until > begin
    ]


def _spent(timeline: Timeline, one: Presence, pieces: tuple[Piece, ...]) -> dict[int, Seconds]:
    spent: dict[int, Seconds] = defaultdict(dict)
    for piece in pieces:
        total = spent[piece.generation]
        seconds = timeline.seconds(piece.start, piece.end)
        if piece.cause is None:
            add(total, seconds)
            continue
        shared = {cause: value for cause, value in seconds.items() if cause in OF_THE_RUN} if one.guaranteed else {}
        add(total, shared)
        own = piece.end - piece.start - sum(shared.values())
        if own > 0.0:
            total[piece.cause] = total.get(piece.cause, 0.0) + own
    return dict(spent)
