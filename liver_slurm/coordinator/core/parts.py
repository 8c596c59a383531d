"""The parts of the state that outlive a coordinator: each folds the journal's records into itself.

``apply(record)`` is the only way in which what a record says comes into the state, in the coordinator that writes the
record as in the one that recovers from it. Fields that no record changes are the memory of one coordinator process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from liver_slurm.base.frozen import replace
from liver_slurm.coordinator.core.damage import Rescue
from liver_slurm.coordinator.core.records import (
    AttemptAborted,
    AttemptStarted,
    BegunAnew,
    Committed,
    Entered,
    LifeBegan,
    LifeEnded,
    Measurement,
    MembersLost,
    NodesGivenBack,
    OfferDecided,
    Record,
    RequestClosed,
    RequestTaken,
    WindowTold,
)
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy.offer import Offer
from liver_slurm.policy.stream_schedule import StreamSchedule
from liver_slurm.policy.survival import Life
from liver_slurm.policy.types import Backoff, Measured, ResizeGoal
from liver_slurm.protocol.messages import Prepared, Streamed, WorldEntered
from liver_slurm.rundir.events import CommitStats, ReconfigurationCommitted

Cause = Literal["start", "notice", "request", "capacity", "successor", "loss"]
REMEMBERED = 200
"""Spans and measurements that are kept at most."""


# ---- worlds --------------------------------------------------------------------------------------------------------


class ReconfigurationPhase(str, Enum):
    """The phase of the reconfiguration to the next world."""

    STEADY = "steady"
    """There is no target world."""
    PREPARE = "prepare"
    STREAM = "stream"
    CUTOVER = "cutover"
    RETIRE = "retire"


@dataclass(frozen=True)
class Attempt:
    """One reconfiguration, from its Prepare to the last member's WorldEntered. World 0 is one without a source."""

    target: World
    source: World | None
    reason: str
    cause: Cause
    started: float
    deadline: float
    phase: ReconfigurationPhase = ReconfigurationPhase.PREPARE
    request: int = -1
    """Number of the explicit request that it fulfils; -1: none."""
    rescue: Rescue | None = None
    """How it follows a broken world; None: the live world is whole."""
    prepared: Mapping[str, Prepared] = field(default_factory=dict)
    prepare_s: float = 0.0
    schedule: StreamSchedule | None = None
    """In mode overlap, once all are prepared."""
    streamed: Mapping[str, Streamed] = field(default_factory=dict)
    committed_at: float = 0.0
    stats: CommitStats | None = None
    """After the commit, unless this is world 0: what the event log will say, but for the pause."""
    entered: Mapping[str, WorldEntered] = field(default_factory=dict)

    involved: tuple[str, ...] = ()
    """Old members that are left, then joiners, by rank, each once. Kept: each vote asks for it, of thousands maybe."""

    def __post_init__(self) -> None:
        if not self.involved:
            old = self.source.members if self.source else ()
            gone = self.rescue.lost if self.rescue is not None else ()
            everybody = (name for name in (*old, *self.target.members) if name not in gone)
            object.__setattr__(self, "involved", tuple(dict.fromkeys(everybody)))

    @property
    def moves_state(self) -> bool:
        """Its state comes from the live world's members: not from the seed, nor from a checkpoint."""
        return self.source is not None and (self.rescue is None or not self.rescue.checkpoint)

    @property
    def committed(self) -> bool:
        """The commit record is written: there is no way back."""
        return self.phase in (ReconfigurationPhase.CUTOVER, ReconfigurationPhase.RETIRE)

    @property
    def ready(self) -> bool:
        """All are prepared, and it is not committed."""
        return not self.committed and len(self.prepared) == len(self.involved)

    @property
    def missing(self) -> list[str]:
        """Workers that it waits for, by name; none: it waits for the live world to stop."""
        if self.committed:
            return sorted(set(self.target.members) - set(self.entered))
        heard = self.prepared if self.phase is ReconfigurationPhase.PREPARE else self.streamed
        return sorted(set(self.involved) - set(heard))


@dataclass(frozen=True)
class WorldState:
    """The live world, and the attempt at the next one."""

    live: World | None = None
    attempt: Attempt | None = None
    backoff: Backoff | None = None
    last: ReconfigurationCommitted | None = None
    """The last reconfiguration of this coordinator, as its event told it."""
    committed: frozenset[int] = frozenset()
    """Generations of all worlds that were committed."""
    processes: Mapping[str, str] = field(default_factory=dict)
    """Which process each member of the live world is; none: the record is of an earlier version."""
    held_at_start: int = -1
    """Number of the boundary with which the live world was committed to stand at its first step; -1: none."""
    next_generation: int = 0
    lost_below: int = 0
    """Worlds of generations below this one are lost: the run was restarted since."""
    unresolved: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """Workers of each attempt that was neither committed nor aborted, by generation. One is that of this coordinator,
    if it has any; those before were left by coordinators that died."""
    left_attempt: tuple[int, frozenset[str]] | None = None
    """Generation and workers of the attempt that the last coordinator left; they are told to abort it."""

    @property
    def members(self) -> tuple[str, ...]:
        """Members of the live world in rank order; none if there is no live world."""
        return self.live.members if self.live is not None else ()

    @property
    def generation(self) -> int:
        """Generation of the live world; -1: there is none yet."""
        return self.live.generation if self.live is not None else -1

    @property
    def phase(self) -> ReconfigurationPhase:
        """Phase of the attempt; STEADY: there is none."""
        return self.attempt.phase if self.attempt is not None else ReconfigurationPhase.STEADY

    @property
    def pending(self) -> Attempt | None:
        """The attempt, unless it is committed."""
        return self.attempt if self.attempt is not None and not self.attempt.committed else None

    @property
    def next_members(self) -> tuple[str, ...]:
        """Members of the attempt's target world; none if there is no attempt."""
        return self.attempt.target.members if self.attempt is not None else ()

    def apply(self, record: Record, now: float, patience: float) -> WorldState:
        """Fold one record in.

        Args:
            record: of the journal.
            now: time of the fold, seconds since the epoch.
            patience: seconds that a committed world has to be entered.
        """
        if isinstance(record, AttemptStarted):
            involved = frozenset(record.members) | frozenset(record.source_members)
            unresolved = {**self.unresolved, record.generation: involved}
            return replace(self, unresolved=unresolved, next_generation=record.generation + 1)
        if isinstance(record, AttemptAborted):
            attempt = self.attempt if self._is_another(record.generation) else None
            return replace(self, attempt=attempt, unresolved=self._without(record.generation))
        if isinstance(record, Committed):
            return self._committed(record, now, patience)
        if isinstance(record, Entered):
            return replace(self, attempt=None)
        if isinstance(record, MembersLost):  # a committed world that is broken need not be entered by all
            return self if self.pending is not None else replace(self, attempt=None)
        if isinstance(record, BegunAnew):
            return replace(self, live=None, attempt=None, processes={}, unresolved={}, lost_below=self.next_generation)
        return self

    def _is_another(self, generation: int) -> bool:
        """Whether there is an attempt at another generation."""
        return self.attempt is not None and self.attempt.target.generation != generation

    def _without(self, generation: int) -> dict[int, frozenset[str]]:
        return {other: workers for other, workers in self.unresolved.items() if other != generation}

    def _committed(self, record: Committed, now: float, patience: float) -> WorldState:
        live = World(record.generation, Layout.parse(record.layout), record.members, record.step)
        attempt = self.attempt
        if attempt is None or attempt.target.generation != record.generation:
            source = None
            if record.source_members:
                source = World(record.source_generation, Layout.parse(record.source_layout), record.source_members, -1)
            attempt = Attempt(live, source, record.reason, record.cause, started=now, deadline=now)
        attempt = replace(
            attempt,
            target=live,
            phase=ReconfigurationPhase.CUTOVER,
            committed_at=now,
            deadline=now + patience,
            stats=record.stats,
        )
        return replace(
            self,
            live=live,
            attempt=attempt,
            processes=dict(zip(record.members, record.processes, strict=False)),
            backoff=None,
            unresolved=self._without(record.generation),
            committed=self.committed | {record.generation},
            held_at_start=record.held,
        )


# ---- requests ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResizeQueue:
    """Explicit resize requests."""

    goals: tuple[ResizeGoal, ...] = ()
    """Not yet fulfilled, in the order in which they will be: those for now, then those for a step."""
    size_ceiling: ResizeGoal | None = None
    """The last fulfilled request: the run does not grow beyond it by itself."""
    next_number: int = 0

    def goal(self, number: int) -> ResizeGoal | None:
        """The waiting request of that number."""
        return next((goal for goal in self.goals if goal.number == number), None)

    def without(self, number: int) -> tuple[ResizeGoal, ...]:
        """The waiting requests but one."""
        return tuple(goal for goal in self.goals if goal.number != number)

    def apply(self, record: Record) -> ResizeQueue:
        """Fold one record in."""
        if isinstance(record, RequestTaken):
            layout = Layout.parse(record.layout) if record.layout else None
            goal = ResizeGoal(record.number, layout, record.workers, record.at_step, give_back=record.give_back)
            goals = tuple(sorted((*self.goals, goal), key=lambda one: max(one.at_step, -1)))
            return replace(self, goals=goals, next_number=record.number + 1)
        if isinstance(record, RequestClosed):
            fulfilled = self.goal(record.number) if record.fulfilled else None
            ceiling = self.size_ceiling if fulfilled is None else fulfilled
            return replace(self, goals=self.without(record.number), size_ceiling=ceiling)
        ceiling = self.size_ceiling
        if isinstance(record, BegunAnew) and ceiling is not None and ceiling.give_back:
            # The job has all its nodes again: the request that gave some back is due once more.
            return replace(self, size_ceiling=None, goals=(ceiling, *self.goals))
        return self


# ---- released nodes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NodeRelease:
    """Nodes of the guaranteed job that went back to the scheduler."""

    nodes_left: Mapping[int, int] = field(default_factory=dict)
    """Nodes left to each component that has released some."""
    spent: frozenset[int] = frozenset()
    """Components of which Slurm takes no further single node."""
    declined: frozenset[int] = frozenset()
    """Components of which it has refused to take some."""
    refused_releases: Mapping[int, int] = field(default_factory=dict)
    """Nodes that a component would have been left with, had Slurm not refused to take the others."""
    releasing: int | None = None
    """Component that Slurm is asked to take nodes of."""

    @property
    def unshrinkable(self) -> frozenset[int]:
        """Components that can be released only as a whole."""
        return self.spent | self.declined

    def apply(self, record: Record, job_id: str) -> NodeRelease:
        """Fold one record in, unless it is of a guaranteed job before ``job_id``."""
        if isinstance(record, NodesGivenBack) and record.job_id == job_id:
            spent = self.spent if record.again else self.spent | {record.component}
            return replace(self, nodes_left={**self.nodes_left, record.component: record.kept}, spent=spent)
        if isinstance(record, BegunAnew):
            return replace(self, nodes_left={}, spent=frozenset())
        return self


# ---- history -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """What a run remembers of itself for its policy."""

    measured: tuple[Measured, ...] = ()
    """What past reconfigurations took, oldest first."""
    steady_since: float = 0.0
    """When the last reconfiguration was over, seconds since the epoch; 0.0: there was none."""
    spans: tuple[Life, ...] = ()
    """How long standby jobs have been there, oldest first."""
    offers: tuple[Offer, ...] = ()
    """Decisions on offers of which something is still to come, oldest first."""
    next_offer: int = 0
    """Number of the next such decision."""

    def apply(self, record: Record) -> History:
        """Fold one record in."""
        if isinstance(record, OfferDecided):
            offers = [one for one in self.offers if not one.over(record.time)]
            number, jobs, until = record.number, record.jobs, record.until
            made = Offer(number, record.time, record.step, record.step_seconds, jobs, record.partitions, until)
            return replace(self, offers=(*offers, made)[-REMEMBERED:], next_offer=number + 1)
        if isinstance(record, WindowTold):
            told = (replace(one, told=one.told + (one.number == record.number)) for one in self.offers)
            return replace(self, offers=tuple(told))
        if isinstance(record, LifeBegan):
            began = Life(record.job_id, record.partition, record.time)
            return replace(self, spans=(*self.spans, began)[-REMEMBERED:])
        if isinstance(record, LifeEnded):
            spans = tuple(
                replace(span, ended=record.time, taken=record.taken)
                if span.job_id == record.job_id and span.ended is None
                else span
                for span in self.spans
            )
            return replace(self, spans=spans)
        if isinstance(record, Measurement):
            one = Measured(record.generation, record.added, record.prepare_s, record.exposed_s)
            return replace(self, measured=(*self.measured, one)[-REMEMBERED:], steady_since=record.time)
        return self
