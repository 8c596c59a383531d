"""Inputs and actions of the core: what goes into the state machine, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from liver_slurm.coordinator.core.records import Record
from liver_slurm.protocol.messages import Message, ToCoordinator
from liver_slurm.rundir.events import Event
from liver_slurm.scheduler.ports import CapacitySnapshot, GuaranteedJob


@dataclass(frozen=True)
class FromPeer:
    """A message came from a worker or a client."""

    time: float
    peer: bytes
    message: ToCoordinator


@dataclass(frozen=True)
class Tick:
    """Time passed."""

    time: float


@dataclass(frozen=True)
class CapacitySeen:
    """The scheduler was asked about standby jobs and the capacity for more."""

    time: float
    capacity: CapacitySnapshot


@dataclass(frozen=True)
class Launched:
    """The scheduler has accepted standby jobs; if it refused others of the same order, that is said first."""

    time: float
    job_ids: tuple[str, ...]
    unit: int
    partition: str = ""


@dataclass(frozen=True)
class LaunchRefused:
    """Standby jobs could not be started."""

    time: float
    error: str


@dataclass(frozen=True)
class StopAsked:
    """The coordinator's process was told to end the run."""

    time: float
    reason: str


@dataclass(frozen=True)
class GivenBack:
    """Slurm has taken nodes of a component of the guaranteed job back, or refused to."""

    time: float
    component: int
    kept: int
    """Nodes that are left to it."""
    nodes: tuple[str, ...] = ()
    """Those that are free now."""
    again: bool = False
    """Slurm may take further single nodes of it."""
    error: str = ""


@dataclass(frozen=True)
class Interrupted:
    """Slurm takes the guaranteed job's nodes away, and will or may start the job again later."""

    time: float
    reason: str
    requeued: bool
    """It is in the queue again; otherwise its grace time runs."""


@dataclass(frozen=True)
class GuaranteedJobSeen:
    """Slurm was asked about the guaranteed job and its successor."""

    time: float
    job: GuaranteedJob


@dataclass(frozen=True)
class SuccessorAnswer:
    """The successor job was submitted, or refused."""

    time: float
    job_id: str = ""
    error: str = ""


@dataclass(frozen=True)
class HungUp:
    """A worker or a client has closed its connection, or the kernel did so when its process ended."""

    time: float
    peer: bytes
    since: float
    """When it was closed; it has not come back by now."""


@dataclass(frozen=True)
class CheckpointFound:
    """The checkpoints were looked through for the newest one that a run could go back to."""

    time: float
    path: str = ""
    """Empty: there is none."""
    step: int = 0
    why_none: str = ""


Input = Union[  # noqa: UP007
    FromPeer,
    Tick,
    CapacitySeen,
    Launched,
    LaunchRefused,
    StopAsked,
    Interrupted,
    GuaranteedJobSeen,
    SuccessorAnswer,
    GivenBack,
    HungUp,
    CheckpointFound,
]


@dataclass(frozen=True)
class Send:
    """Send a message to a worker or client."""

    peer: bytes
    message: Message


@dataclass(frozen=True)
class Emit:
    """Append to the event log."""

    event: Event


@dataclass(frozen=True)
class Journal:
    """Make a record durable before any later action is carried out."""

    record: Record


@dataclass(frozen=True)
class Launch:
    """Start standby jobs."""

    count: int
    unit: int = 0
    """Which of the job file's units."""
    partition: str = ""
    until: float = 0.0
    """Until when they stay in the queue, seconds since the epoch."""


@dataclass(frozen=True)
class Release:
    """End one standby job."""

    job_id: str


@dataclass(frozen=True)
class Defer:
    """Let standby jobs that wait in the queue not start for a while."""

    job_ids: tuple[str, ...]
    until: float
    """Seconds since the epoch; once it has passed, the order is void."""


@dataclass(frozen=True)
class SubmitSuccessor:
    """Submit the job that is to take the run over."""


@dataclass(frozen=True)
class GiveBack:
    """Have Slurm take all but the first ``keep`` nodes of a component of the guaranteed job."""

    component: int
    keep: int


@dataclass(frozen=True)
class FindCheckpoint:
    """Look for the newest checkpoint that can be read, of ``at_most`` so many steps."""

    at_most: int | None
    """None: of as many as the metrics have, as nobody is left who would know."""


@dataclass(frozen=True)
class RollBackMetrics:
    """Take the steps behind ``step`` out of the metrics: they are trained again."""

    step: int


@dataclass(frozen=True)
class Finish:
    """End the coordinator's process."""

    code: int
    reason: str
    over: bool = True
    """So is the run; otherwise another coordinator goes on with it, and standby jobs are left to that one."""
    successor: str = ""
    """The job in which it goes on; empty: not known, or the same."""


Action = Union[  # noqa: UP007
    Send, Emit, Journal, Launch, Release, Defer, SubmitSuccessor, GiveBack, FindCheckpoint, RollBackMetrics, Finish
]
