"""Figures of a run within the time of its trace, from what it has on record. Pure."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from liver_slurm.bench.replay.restart_orders import Step
from liver_slurm.observability.ledger.account import Account
from liver_slurm.observability.ledger.causes import Cause


@dataclass(frozen=True)
class Figures:
    """What one run made of a trace, really or simulated."""

    ettr: float
    """Seconds in steps that count, over those of the trace."""
    capacity_goodput: float
    """Device-seconds in steps that count, over those that the trace offers."""
    changes: float
    paused_s: float
    """All other time."""
    steps: float

    def document(self) -> dict[str, Any]:
        """Make its document."""
        return asdict(self)


def figures(seconds: float, device_s: float, wall_s: float, offered: float, changes: int, steps: float) -> Figures:
    """Make the figures of so many seconds, and device-seconds, in steps that count."""
    return Figures(seconds / wall_s, device_s / offered, changes, wall_s - seconds, steps)


def of_ledger(account: Account, begin: float, end: float, offered: float) -> Figures:
    """Return the figures of a run of the product between two moments."""

    def productive(start: float, until: float) -> float:
        return account.timeline.seconds(max(start, begin), min(until, end)).get(Cause.STEP, 0.0)

    pieces = [one for pieces in account.pieces for one in pieces if one.cause is None]
    device_s = sum(productive(one.start, one.end) for one in pieces if one.end > begin and one.start < end)
    changes = sum(begin < world.begin <= end for world in account.worlds)
    ends = account.facts.steps.end
    return figures(
        productive(begin, end), device_s, end - begin, offered, changes, int(((ends > begin) & (ends <= end)).sum())
    )


@dataclass(frozen=True)
class WorldSteps:
    """The steps of one world of the run that restarts."""

    size: int
    steps: Sequence[Step]
    layout: str = ""

    @property
    def usual(self) -> float:
        """Seconds of a step with the usual gap to the next, the first one left out."""
        found = [
            later.end - earlier.end
            for earlier, later in itertools.pairwise(self.steps[1:])
            if earlier.save_s == 0.0
        ]  # fmt: skip
        return statistics.median(found) if found else self.steps[-1].end - self.steps[-1].begun


def of_restarts(worlds: Sequence[WorldSteps], begin: float, end: float, offered: float) -> Figures:
    """Return the figures of the run that restarts; a step that was trained again does not count the first time."""
    trained = [world for world in worlds if world.steps]
    seconds = device_s = 0.0
    count = 0
    for number, world in enumerate(trained):
        kept = min((later.steps[0].step for later in trained[number + 1 :]), default=world.steps[-1].step + 1)
        for place, one in enumerate(world.steps):
            if one.step >= kept:
                break
            since = _begin(world, place)
            inside = max(0.0, min(one.end, end) - max(since, begin))
            seconds, device_s = seconds + inside, device_s + inside * world.size
            count += begin < one.end <= end
    changes = sum(begin < world.steps[0].end <= end for world in trained[1:])
    return figures(seconds, device_s, end - begin, offered, changes, count)


def _begin(world: WorldSteps, place: int) -> float:
    """Return since when a step counts: the end of the one before it, less what is no step between them."""
    one = world.steps[place]
    if place == 0:
        return max(one.begun, one.end - world.usual)
    before = world.steps[place - 1]
    return before.end if before.save_s == 0.0 else max(one.begun, one.end - world.usual)


def restart_costs(worlds: Sequence[WorldSteps]) -> dict[str, list[float]]:
    """Return what each restart and each checkpoint took, seconds: ``restart_s``, ``save_s``.

    A restart is from the checkpoint's end to the first step's, less a usual step; the product's ledger counts so, too.
    """
    restarts = []
    for old, new in itertools.pairwise(worlds):
        if not old.steps or not new.steps:  # one that was broken off, as its nodes were wanted before it trained
            continue
        last, first = old.steps[-1], new.steps[0]
        if last.save_s > 0.0 and last.step + 1 == first.step:
            restarts.append(first.end - (last.end + last.save_s) - new.usual)
    saves = [one.save_s for world in worlds for one in world.steps if one.save_s > 0.0]
    return {"restart_s": restarts, "save_s": saves}


def sizes_of_ledger(account: Account, begin: float) -> list[tuple[float, int]]:
    """Return the workers of the product's world, from which second after ``begin`` on."""
    return [(world.begin - begin, len(world.members)) for world in account.worlds]


def sizes_of_restarts(worlds: Sequence[WorldSteps], begin: float) -> list[tuple[float, int]]:
    """Return the workers that trained in the run that restarts, from which second after ``begin`` on; 0: none did."""
    found: list[tuple[float, int]] = []
    for world in worlds:
        if world.steps:
            found += [(_begin(world, 0) - begin, world.size), (world.steps[-1].end - begin, 0)]
    return found[:-1]


def relative(real: Figures, simulated: Figures) -> Mapping[str, float]:
    """Return by how much the simulated figures differ from the real ones, as shares of those."""
    return {
        name: getattr(simulated, name) / getattr(real, name) - 1.0 if getattr(real, name) else float("inf")
        for name in ("ettr", "capacity_goodput")
    }
