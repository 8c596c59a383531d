"""The live world and the attempt at the next, as a part of the state that outlives a coordinator; see :mod:`parts`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from liver_slurm.base.frozen import replace
from liver_slurm.base.tally import Tally
from liver_slurm.coordinator.core.records import (
    AttemptAborted,
    AttemptStarted,
    BegunAnew,
    Committed,
    Entered,
    MembersLost,
    Record,
)
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy.stream_schedule import StreamSchedule
from liver_slurm.policy.types import Backoff
from liver_slurm.protocol.messages import Prepared, Streamed, WorldEntered
from liver_slurm.rundir.events import CommitStats, ReconfigurationCommitted

Cause = Literal["start", "notice", "request", "capacity", "successor", "loss"]


class ReconfigurationPhase(str, Enum):
    """The phase of the reconfiguration to the next world."""

    STEADY = "steady"
    """There is no target world."""
    PREPARE = "prepare"
    STREAM = "stream"
    CUTOVER = "cutover"
    RETIRE = "retire"


@dataclass(frozen=True)
class Rescue:
    """How a world follows a broken one."""

    lost: tuple[str, ...]
    """Members of the broken world that are gone."""
    step: int
    """Completed steps that the next world begins with."""
    scribe: str = ""
    """Survivor that adds to the metrics what a lost worker did not write any more; empty: nobody has to."""
    checkpoint: str | None = None
    """Folder that the next world loads; empty: it begins as the run did; None: its state comes from the survivors."""
    mirrors: Mapping[str, str] = field(default_factory=dict)
    """Lost members whose state comes from a mirror, and the survivor that keeps it."""
    back: bool = False
    """All go back to snapshots of this step."""

    @property
    def repeats(self) -> bool:
        """Steps behind :attr:`step` may be in the metrics already, and are trained again."""
        return self.back or self.checkpoint is not None


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
    prepared: Tally[Prepared] = field(default_factory=Tally)
    prepare_s: float = 0.0
    schedule: StreamSchedule | None = None
    """In mode overlap, once all are prepared."""
    streamed: Tally[Streamed] = field(default_factory=Tally)
    committed_at: float = 0.0
    stats: CommitStats | None = None
    """After the commit, unless this is world 0: what the event log will say, but for the pause."""
    entered: Tally[WorldEntered] = field(default_factory=Tally)

    involved: tuple[str, ...] = ()
    """Old members that are left, then joiners, by rank, each once. Kept, as the next two: each vote asks for them, of
    thousands maybe."""
    voters: frozenset[str] = frozenset()
    """The same, without their order."""
    joined: frozenset[str] = frozenset()
    """Members of the target world."""

    def __post_init__(self) -> None:
        if not self.involved:
            old = self.source.members if self.source else ()
            gone = self.rescue.lost if self.rescue is not None else ()
            everybody = tuple(dict.fromkeys(name for name in (*old, *self.target.members) if name not in gone))
            object.__setattr__(self, "involved", everybody)
            object.__setattr__(self, "voters", frozenset(everybody))
            object.__setattr__(self, "joined", frozenset(self.target.members))

    @property
    def moves_state(self) -> bool:
        """Its state comes from the live world's members: not from the seed, nor from a checkpoint."""
        return self.source is not None and (self.rescue is None or self.rescue.checkpoint is None)

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
            return sorted(self.joined - set(self.entered))
        heard = self.prepared if self.phase is ReconfigurationPhase.PREPARE else self.streamed
        return sorted(self.voters - set(heard))


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
    """Number of the barrier with which the live world was committed to stand at its first step; -1: none."""
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
    def names(self) -> frozenset[str]:
        """The same, without their order."""
        return self.live.names if self.live is not None else frozenset()

    @property
    def generation(self) -> int:
        """Generation of the live world; -1: there is none yet."""
        return self.live.generation if self.live is not None else -1

    def has_left_behind(self, name: str, generation: int) -> bool:
        """Return whether a worker that says it is in the world of a generation is in one that is over."""
        return 0 <= generation != self.generation and name not in self.names

    @property
    def phase(self) -> ReconfigurationPhase:
        """Phase of the attempt; STEADY: there is none."""
        return self.attempt.phase if self.attempt is not None else ReconfigurationPhase.STEADY

    @property
    def pending(self) -> Attempt | None:
        """The attempt, unless it is committed."""
        return self.attempt if self.attempt is not None and not self.attempt.committed else None

    @property
    def next_names(self) -> frozenset[str]:
        """Members of the attempt's target world; none if there is no attempt."""
        return self.attempt.joined if self.attempt is not None else frozenset()

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
        """Return whether there is an attempt at another generation."""
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
