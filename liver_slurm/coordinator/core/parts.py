"""The parts of the state that outlive a coordinator, but for worlds and barriers: each folds the journal into itself.

``apply(record)`` is the only way in which what a record says comes into the state, in the coordinator that writes the
record as in the one that recovers from it. Fields that no record changes are the memory of one coordinator process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from liver_slurm.base.frozen import replace
from liver_slurm.base.table import Table
from liver_slurm.coordinator.core.records import (
    BegunAnew,
    BoundaryConfirmed,
    Committed,
    LifeBegan,
    LifeEnded,
    Measurement,
    MembersLost,
    NodesGivenBack,
    OfferDecided,
    Record,
    RequestClosed,
    RequestTaken,
    StartFailed,
    WindowTold,
)
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy.offer import Offer
from liver_slurm.policy.setbacks import Breakdown, Setback
from liver_slurm.policy.survival import Life
from liver_slurm.policy.types import Measured, ResizeGoal
from liver_slurm.protocol.messages import Parked

REMEMBERED = 200
"""Measurements, decisions, and spans that have ended, that are kept at most."""


# ---- sudden deaths --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundCheckpoint:
    """The newest checkpoint that a run could go back to."""

    path: str
    """Empty: there is none, and the run begins as it did before."""
    step: int
    why_none: str = ""
    """Why none of those that there are can be used; empty: one can, or there are none."""


@dataclass(frozen=True)
class Damage:
    """The live world is broken: members of it are lost, or a collective of it has failed."""

    generation: int = -1
    """Of the broken world; -1: the live world is whole."""
    lost: tuple[str, ...] = ()
    """Members of it that are gone."""
    reason: str = ""
    """What was first known of it."""
    gone: Mapping[str, int] = field(default_factory=dict)
    """Every worker that was lost out of a live world, and that world's generation: it is not let in again."""
    processes: Mapping[str, int] = field(default_factory=dict)
    """The same by process: one that has not heard of its world's commit does not say that it is in it."""
    since: float = 0.0
    """When this coordinator first knew of that, seconds since the epoch."""
    parked: Mapping[str, Parked] = field(default_factory=dict)
    """What each survivor has said of how far it has come."""
    stood_at: int = -1
    """Completed steps of the state that an attempt at the next world has begun to move; -1: none has. Survivors may
    have come to it since they parked, and keepers have no way back from it."""
    first: Breakdown | None = None
    """How the live world broke, as far as was known at once; None: it is whole, or another coordinator saw it."""
    setback: Setback | None = None
    """The step that the last worlds did not come beyond; None: none broke yet."""
    searching: bool = False
    """The checkpoints are being looked through."""
    checkpoint: FoundCheckpoint | None = None
    """What was found; None: nobody has looked yet."""

    @property
    def broken(self) -> bool:
        """The live world trains no more."""
        return self.generation >= 0

    def lost_out_of(self, name: str, generation: int, process: str = "") -> int:
        """Return which world a worker was lost out of that is in, or before, that of ``generation``; -1: none."""
        gone = self.gone.get(name, -1)
        return self.processes.get(process, gone if 0 <= generation <= gone else -1)

    def apply(self, record: Record, generation: int, processes: Mapping[str, str]) -> Damage:
        """Fold one record in; the world that is live before it has this generation, and these processes by member."""
        if isinstance(record, MembersLost):
            before = self if self.generation == record.generation else Damage(record.generation, setback=self.setback)
            return replace(
                before,
                reason=before.reason or record.reason,
                lost=tuple(dict.fromkeys((*before.lost, *record.members))),
                gone={**self.gone, **dict.fromkeys(record.members, record.generation)},
                processes=self._without({name: processes.get(name, "") for name in record.members}, record.generation),
            )
        if isinstance(record, BoundaryConfirmed) and self.broken:
            return replace(self, stood_at=record.step)
        if isinstance(record, Committed):
            return Damage(gone=self.gone, processes=self.processes, setback=self.setback)
        if isinstance(record, BegunAnew):  # nobody of the world before has a part in what comes
            return Damage(processes=self._without(processes, generation))
        return self

    def _without(self, processes: Mapping[str, str], generation: int) -> dict[str, int]:
        """Return the processes that are lost once these members of the world of a generation are, too."""
        return {**self.processes, **{process: generation for process in processes.values() if process}}


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
        """Return the waiting request of that number."""
        return next((goal for goal in self.goals if goal.number == number), None)

    def without(self, number: int) -> tuple[ResizeGoal, ...]:
        """Return the waiting requests but one."""
        return tuple(goal for goal in self.goals if goal.number != number)

    def apply(self, record: Record) -> ResizeQueue:
        """Fold one record in."""
        if isinstance(record, RequestTaken):
            layout = Layout.parse(record.layout) if record.layout else None
            goal = ResizeGoal(record.number, layout, record.workers, record.at_step, give_back=record.give_back)
            return replace(self, goals=_in_order(*self.goals, goal), next_number=record.number + 1)
        if isinstance(record, RequestClosed):
            fulfilled = self.goal(record.number) if record.fulfilled else None
            ceiling = self.size_ceiling if fulfilled is None else fulfilled
            return replace(self, goals=self.without(record.number), size_ceiling=ceiling)
        ceiling = self.size_ceiling
        if isinstance(record, BegunAnew) and ceiling is not None and ceiling.give_back:
            # The job has all its nodes again: the request that gave some back is due once more.
            return replace(self, size_ceiling=None, goals=_in_order(ceiling, *self.goals))
        return self


def _in_order(*goals: ResizeGoal) -> tuple[ResizeGoal, ...]:
    return tuple(sorted(goals, key=lambda one: max(one.at_step, -1)))


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
    going_on: Mapping[str, float] = field(default_factory=Table)
    """When each of those that are still there began."""
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
            spans = (*self._remembered(), began)
            return replace(self, spans=spans, going_on=Table.of(self.going_on).put(record.job_id, record.time))
        if isinstance(record, LifeEnded):
            return self._ended(record)
        if isinstance(record, StartFailed):
            failed = Life(record.job_id, record.partition, record.time, record.time, failed=True)
            return replace(self, spans=(*self._remembered(), replace(failed, ordered=record.ordered)))
        if isinstance(record, Measurement):
            one = Measured(record.generation, record.added, record.prepare_s, record.exposed_s)
            return replace(self, measured=(*self.measured, one)[-REMEMBERED:], steady_since=record.time)
        return self

    def _ended(self, record: LifeEnded) -> History:
        """Note the end of a life that goes on; there may be thousands."""
        if record.job_id not in self.going_on:
            return self
        spans = self.spans
        at = next(at for at, span in enumerate(spans) if span.job_id == record.job_id and span.ended is None)
        ended = replace(spans[at], ended=record.time, taken=record.taken)
        going_on = Table.of(self.going_on).without(record.job_id)
        return replace(self, spans=(*spans[:at], ended, *spans[at + 1 :]), going_on=going_on)

    def _remembered(self) -> tuple[Life, ...]:
        """Leave out the oldest that has ended if there are many; one that goes on would be taken for a new one."""
        if len(self.spans) - len(self.going_on) <= REMEMBERED:
            return self.spans
        oldest = next(span for span in self.spans if span.ended is not None)
        return tuple(span for span in self.spans if span is not oldest)
