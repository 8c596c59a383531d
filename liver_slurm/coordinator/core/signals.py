"""Signals: what a module has to tell its neighbours or those above it; :data:`~.step.REACTIONS` says who reacts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from liver_slurm.coordinator.core.state import RunPhase
from liver_slurm.coordinator.core.workers import Eviction, Worker
from liver_slurm.protocol.messages import Heartbeat, Register
from liver_slurm.scheduler.ports import CapacitySnapshot


@dataclass(frozen=True)
class Admitted:
    """A process may register under its name."""

    peer: bytes
    message: Register


@dataclass(frozen=True)
class Registered:
    """A worker has registered."""

    name: str
    first: bool
    """For the first time with this coordinator."""
    warm: bool


@dataclass(frozen=True)
class Heard:
    """A heartbeat came that may differ from the state: something is under way, here or with the worker."""

    beat: Heartbeat


OWN_WORD = "its own word"
"""What showed that a worker is gone: it said so itself."""


@dataclass(frozen=True)
class WorkerGone:
    """A worker is gone without having been told to go."""

    name: str
    reason: str
    how: str = OWN_WORD
    """What showed it: ``hang-up``, ``process exit``, ``silence``, …"""
    after: float = 0.0
    """Seconds from the first sign of it until now."""


@dataclass(frozen=True)
class WorkersGone:
    """Workers are gone: all that one handler has told of in a row, as they may be lost by the thousand."""

    workers: tuple[WorkerGone, ...]


@dataclass(frozen=True)
class WorkerLost:
    """A worker that the run counted on was lost, and is no longer registered."""

    worker: Worker
    reason: str
    in_world: bool
    """It was a member of the live world."""
    said: bool = False
    """It has said so itself, and why."""


@dataclass(frozen=True)
class WorkersLost:
    """Workers were lost together."""

    workers: tuple[WorkerLost, ...]


@dataclass(frozen=True)
class WorldStands:
    """The live world makes no step, and nobody knows yet who is dead."""

    reason: str


@dataclass(frozen=True)
class CapacityObserved:
    """The scheduler has shown the standby jobs."""

    before: CapacitySnapshot | None
    now: CapacitySnapshot


@dataclass(frozen=True)
class EvictionHeard:
    """Something new is said of when a worker goes away: by itself, or by the scheduler."""

    name: str
    words: dict[str, Eviction | None]
    """``signalled`` and ``announced`` of :class:`~.workers.Worker`, those that are new; None: nothing any more."""


@dataclass(frozen=True)
class EvictionChanged:
    """Another notice of a worker counts than before."""

    worker: Worker
    """As it was before."""
    before: Eviction | None
    now: Eviction | None


@dataclass(frozen=True)
class BarrierMoved:
    """The cutover's barrier got a vote, or a new step."""


@dataclass(frozen=True)
class WorldCommitted:
    """The commit record of a world is written."""


@dataclass(frozen=True)
class LastStepTrained:
    """Members of the live world have trained the run's last step."""

    step: int
    by_all: bool
    reason: str = ""
    """Why it is the last, if it is not that of the job file."""


@dataclass(frozen=True)
class TimeIsUp:
    """The guaranteed job's time limit is near, and no successor is ready to take over."""

    reason: str
    until: float
    """When the workers must have been told to leave, seconds since the epoch."""
    resumes: bool
    """A successor job goes on with the run, whenever it starts."""


@dataclass(frozen=True)
class RunInterrupted:
    """The guaranteed job's nodes are being taken away."""

    reason: str


@dataclass(frozen=True)
class RunEnding:
    """The outcome of the run, or of this coordinator's part of it, is decided."""

    phase: RunPhase
    code: int
    reason: str


Signal = Union[  # noqa: UP007
    Admitted,
    Registered,
    Heard,
    WorkersGone,
    WorkersLost,
    WorldStands,
    CapacityObserved,
    EvictionHeard,
    EvictionChanged,
    BarrierMoved,
    WorldCommitted,
    LastStepTrained,
    TimeIsUp,
    RunInterrupted,
    RunEnding,
]
