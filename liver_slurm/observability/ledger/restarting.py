"""The same run under checkpoint and restart. Pure.

It restarts for what it must, and to grow only if that pays: it is the better of one that restarts for each change and
one that grows only where it restarts anyway, as the simulator's is. What comes during a restart is a part of it.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from liver_slurm.observability.ledger.account import Account
from liver_slurm.observability.ledger.causes import Cause
from liver_slurm.observability.ledger.changes import LOSS, Change
from liver_slurm.observability.ledger.gaps import is_new_start
from liver_slurm.observability.ledger.worlds import WorldSpan
from liver_slurm.rundir.events import CheckpointWritten, CoordinatorStarted

STARTING = (Cause.START, Cause.FIRST_WORLD)


@dataclass(frozen=True)
class Restarted:
    """The same steps, with checkpoints and restarts in place of the changes."""

    restart_s: float | None
    """The start from which this run trained first, with what its first step took longer; None: it has not trained."""
    save_s: float
    """The median checkpoint of this run; 0.0 if it wrote none, which favours checkpoint and restart."""
    saves: int
    """Checkpoints that the median is of."""
    stopped_s: float
    """All that training would stand still for the restarts."""
    wall_s: float
    ettr: float
    """This run's productive seconds over that wall time: what its steps take longer on fewer workers is lost, too."""
    assumption: str
    restarts: int = 0
    grows: bool = True
    """Whether it restarts to grow; else it grows where it must restart anyway, which is better here."""
    slower_s: float = 0.0
    """What its steps would take longer, as it trains on fewer workers than this run did."""


def restarted(account: Account, changes: tuple[Change, ...]) -> Restarted:
    """Return what the same run would be if it changed by checkpoints and restarts of all processes."""
    facts = account.facts
    wall = facts.until - facts.created
    productive = account.of_the_run().get(Cause.STEP, 0.0)
    made = [change for change in changes if change.committed]
    start = start_seconds(account)
    seconds = [event.seconds for event in facts.events if isinstance(event, CheckpointWritten)]
    save = statistics.median(seconds) if seconds else 0.0
    worlds = _Worlds(account)
    at_once, seldom = (_Restarts(worlds, made, start or 0.0, save, grows=grows) for grows in (True, False))
    best = seldom if seldom.lost_s < at_once.lost_s else at_once
    longer = wall - sum(change.exposed_s for change in made) + best.lost_s
    growing = "" if best.grows else ", and growth only where it restarts anyway, which is better here"
    assumption = (
        f"the same steps, {best.count} restarts for {len(made)} changes{growing}; each is a checkpoint ({save:.2f} s, "
        f"median of {len(seconds)} in this run; none after a loss) and a restart ({start or 0.0:.2f} s, as this run's "
        "own start took), and takes in all changes that come during it; no queue, no step trained twice"
    )
    return Restarted(
        restart_s=start,
        save_s=save,
        saves=len(seconds),
        stopped_s=best.stopped_s,
        wall_s=longer,
        ettr=productive / longer if longer > 0.0 else 0.0,
        assumption=assumption,
        restarts=best.count,
        grows=best.grows,
        slower_s=best.slower_s,
    )


class _Worlds:
    """This run's worlds: who was in each, how many steps it trained, and how long one of its layout takes."""

    def __init__(self, account: Account) -> None:
        steps = account.facts.steps
        self.all = account.worlds
        self.steps: dict[int, int] = {}
        found: dict[str, list[float]] = {}
        heads = np.flatnonzero(np.diff(steps.generation, prepend=-2)).tolist()
        layouts = {world.generation: world.layout for world in account.worlds}
        for head, end in itertools.pairwise([*heads, len(steps)]):
            generation = int(steps.generation[head])
            self.steps[generation] = self.steps.get(generation, 0) + end - head
            usual = (steps.end - steps.start)[head + 1 : end]  # the first step of a world takes longer
            found.setdefault(layouts.get(generation, ""), []).extend(usual.tolist())
        self._step_s = {layout: statistics.median(times) for layout, times in found.items() if layout and times}

    def slower_s(self, world: WorldSpan, here: WorldSpan) -> float:
        """Return what the steps of ``world`` would take longer in the layout of ``here``; 0.0: that is not known."""
        theirs, ours = self._step_s.get(world.layout), self._step_s.get(here.layout)
        if theirs is None or ours is None:
            return 0.0
        return self.steps.get(world.generation, 0) * max(0.0, ours - theirs)


class _Restarts:
    """One way to restart, followed through the changes of a run."""

    def __init__(
        self, worlds: _Worlds, changes: Sequence[Change], restart_s: float, save_s: float, *, grows: bool
    ) -> None:
        self.grows = grows
        self.count = 0
        self.stopped_s = self.slower_s = 0.0
        made = {change.generation: change for change in changes}
        here: WorldSpan | None = None
        back = -np.inf  # when the last restart is over
        for world in worlds.all:
            change = made.get(world.generation)
            if here is None or change is None or change.cutover < back:
                here = world  # the run's own start, also one after its job was away, or a part of the last restart
            elif grows or _must(change, here, world):
                here = world
                stop = restart_s + (0.0 if change.cause == LOSS else save_s)  # nothing can be saved after a loss
                self.count += 1
                self.stopped_s += stop
                back = change.cutover + stop
            self.slower_s += worlds.slower_s(world, here)

    @property
    def lost_s(self) -> float:
        """All that training loses by it."""
        return self.stopped_s + self.slower_s


def _must(change: Change, here: WorldSpan, world: WorldSpan) -> bool:
    """Return whether a run that trains in ``here`` must restart for a change: a worker goes, or it is reshaped."""
    return change.after == change.before or not {*here.members} <= {*world.members}


def start_seconds(account: Account) -> float | None:
    """Return how long the start took from which this run trained its first step: processes, first world, and what that
    step took longer. Starts before it that came to nothing are not a part of it.
    """
    facts, timeline = account.facts, account.timeline
    if not len(facts.steps):
        return None
    first = float(facts.steps.start[0])
    starts = [
        event.time
        for event in facts.events
        if isinstance(event, CoordinatorStarted) and is_new_start(event) and event.time <= first
    ]
    begin = facts.created
    if len(starts) > 1:  # the segment in which the last one is, as Slurm may have started its job before it served
        begin = float(timeline.times[int(np.searchsorted(timeline.times, starts[-1], side="right")) - 1])
    spent = timeline.seconds(begin, float(facts.steps.end[0]))
    return sum(spent.get(cause, 0.0) for cause in (*STARTING, Cause.FIRST_STEP))
