"""Changes: what each reconfiguration took, phase by phase, and how much of it training saw. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from liver_slurm.observability.ledger.account import Account
from liver_slurm.observability.ledger.causes import Cause
from liver_slurm.observability.ledger.facts import Facts
from liver_slurm.rundir import events as e

LOSS = "loss"
"""Cause of a reconfiguration that follows the loss of a member, and that nobody announced."""


@dataclass(frozen=True)
class Phase:
    """One part of a reconfiguration. Phases that nothing on record speaks of are left out."""

    name: str
    """``decision``, ``queue``, ``start``, ``bootstrap``, ``groups``, ``plan``, ``stream``, ``cutover`` or
    ``first_step``; of a world that was lost ``recovery``, from its last step on record, and ``first_step``."""
    hidden_s: float
    """Training went on meanwhile."""
    exposed_s: float
    """Training stood still, or was slower."""


@dataclass(frozen=True)
class Change:
    """One reconfiguration. Times are seconds since the epoch."""

    generation: int
    source: str
    to: str
    cause: str
    reason: str
    committed: bool
    noticed: float | None
    """When the first of those that leave got its notice; None: nobody did."""
    started: float
    """When it was decided and begun."""
    prepared: float | None
    streamed: float | None
    cutover: float
    """When the new world took over; of one that was given up: when that was."""
    ended: float
    """When all trained in the new world."""
    before: int
    """Workers of the old world."""
    after: int
    """Workers of the new world."""
    exposed_s: float
    """All that training lost by it: pause, gate and hooks, as the event says them, and the first step's excess."""
    phases: tuple[Phase, ...]
    cutover_step: int | None = None
    mode: str = ""
    bytes_moved: int = 0

    @property
    def hidden_s(self) -> float:
        """All that it took while training went on."""
        return sum(phase.hidden_s for phase in self.phases)


def find_changes(account: Account) -> tuple[Change, ...]:
    """Return all reconfigurations that are over, committed or given up, in their order."""
    facts = account.facts
    begins = {world.generation: world.begin for world in account.worlds}
    sizes = {world.generation: len(world.members) for world in account.worlds}
    history = _History(facts)
    found = []
    live = -1
    for event in facts.events:
        if isinstance(event, e.WorldLive):
            live = event.generation
        elif isinstance(event, e.ReconfigurationCommitted):
            excess = _excess(account, event.cutover_step)
            if event.cause == LOSS:
                exposed = _stood_still(account, event.cutover_step)
                phases: tuple[Phase, ...] = (Phase("recovery", 0.0, exposed), Phase("first_step", 0.0, excess))
            else:
                exposed = event.pause_s + event.gate_s + event.hook_s
                phases = tuple(_phases(event, history, excess))
            found.append(
                Change(
                    generation=event.generation,
                    source=event.source,
                    to=event.to,
                    cause=event.cause,
                    reason=event.reason,
                    committed=True,
                    noticed=history.noticed(event),
                    started=history.started.get(event.generation, event.time),
                    prepared=history.prepared.get(event.generation),
                    streamed=history.streamed.get(event.generation),
                    cutover=begins.get(event.generation, event.time),
                    ended=event.time,
                    before=sizes.get(live, 0),
                    after=len(event.members),
                    exposed_s=exposed + excess,
                    phases=phases,
                    cutover_step=event.cutover_step,
                    mode=event.mode,
                    bytes_moved=event.bytes_moved,
                )
            )
        elif isinstance(event, e.ReconfigurationAborted):
            found.append(_given_up(event, history, sizes.get(live, 0)))
    return tuple(found)


def _given_up(event: e.ReconfigurationAborted, history: _History, before: int) -> Change:
    started = history.started.get(event.generation, event.time)
    return Change(
        generation=event.generation,
        source=event.source,
        to=event.to,
        cause=event.cause,
        reason=event.reason,
        committed=False,
        noticed=history.noticed(event),
        started=started,
        prepared=history.prepared.get(event.generation),
        streamed=None,
        cutover=event.time,
        ended=event.time,
        before=before,
        after=len(event.members),
        exposed_s=0.0,
        phases=(Phase("groups", event.time - started, 0.0),),
    )


class _History:
    """When what was first on record of workers, standby jobs and generations."""

    def __init__(self, facts: Facts) -> None:
        self.started: dict[int, float] = {}
        self.prepared: dict[int, float] = {}
        self.streamed: dict[int, float] = {}
        self._notices: dict[str, list[float]] = {}
        self.registered: dict[str, float] = {}
        self.ready: dict[str, float] = {}
        self.waits: dict[str, float] = {}
        self.runs: dict[str, float] = {}
        self.job_of: dict[str, str] = {}
        for event in facts.events:
            self._take(event)

    def _take(self, event: e.Event | e.UnknownEvent) -> None:
        match event:
            case e.ReconfigurationStarted():
                self.started[event.generation] = event.time
            case e.ReconfigurationPrepared():
                self.prepared[event.generation] = event.time
            case e.ReconfigurationStreamed():
                self.streamed[event.generation] = event.time
            case e.Notice():
                self._notices.setdefault(event.worker, []).append(event.time)
            case e.WorkerRegistered():
                self.registered.setdefault(event.worker, event.time)
                self.job_of[event.worker] = event.job_id
            case e.StandbyReady():
                self.ready.setdefault(event.worker, event.time)
                self.job_of[event.worker] = event.job_id or ""
            case e.StandbyJobChanged():
                first = self.waits if event.state == "pending" else self.runs if event.state == "running" else {}
                first.setdefault(event.job_id, event.time)
            case _:
                pass

    def noticed(self, event: e.ReconfigurationCommitted | e.ReconfigurationAborted) -> float | None:
        """Return when the first of those that leave with this change got the last notice before it ended."""
        if event.cause != "notice":
            return None
        last = [
            max(before)
            for name in event.leavers
            if (before := [time for time in self._notices.get(name, ()) if time <= event.time])
        ]
        return min(last, default=None)


def _phases(event: e.ReconfigurationCommitted, history: _History, excess: float) -> Iterator[Phase]:
    started = history.started.get(event.generation)
    noticed = history.noticed(event)
    ready = max((history.ready[name] for name in event.joiners if name in history.ready), default=None)
    known_at = noticed if noticed is not None else ready
    if started is not None and known_at is not None and started >= known_at:
        yield Phase("decision", started - known_at, 0.0)
    last = max(event.joiners, key=lambda name: history.ready.get(name, 0.0), default="")
    job = history.job_of.get(last, "")
    way = [history.waits.get(job), history.runs.get(job), history.registered.get(last), history.ready.get(last)]
    for name, begin, end in zip(("queue", "start", "bootstrap"), way, way[1:], strict=False):
        if begin is not None and end is not None and end >= begin:
            yield Phase(name, end - begin, 0.0)
    yield Phase("groups", max(0.0, event.prepare_s - event.plan_s), 0.0)
    yield Phase("plan", min(event.plan_s, event.prepare_s), 0.0)
    exposed = min(event.stream_s, event.pause_s) if event.mode != "overlap" else 0.0
    yield Phase("stream", event.stream_s - exposed, exposed)
    yield Phase("cutover", 0.0, event.pause_s - exposed + event.gate_s + event.hook_s)
    yield Phase("first_step", 0.0, excess)


def _stood_still(account: Account, cutover_step: int) -> float:
    """Return how long nothing that counts was trained after the last step of a world that was lost."""
    steps = account.facts.steps
    row = int(np.searchsorted(steps.step, cutover_step, side="right"))
    if not 0 < row < len(steps):
        return 0.0
    spent = account.timeline.seconds(float(steps.end[row - 1]), float(steps.start[row]))
    return spent.get(Cause.WASTED, 0.0) + spent.get(Cause.RECOVERY, 0.0)


def _excess(account: Account, cutover_step: int) -> float:
    """Return how much longer the first step of the new world took than its others do."""
    steps = account.facts.steps
    row = int(np.searchsorted(steps.step, cutover_step, side="right"))
    if row >= len(steps):
        return 0.0
    spent = account.timeline.seconds(float(steps.start[row]), float(steps.end[row]))
    return spent.get(Cause.FIRST_STEP, 0.0)
