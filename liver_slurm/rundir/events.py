"""The vocabulary of ``events.jsonl``: one struct per event, and the JSON form of each. Pure.

Those of a reconfiguration are in :mod:`liver_slurm.rundir.reconfiguration_events`, and have their names here too. The
value of the key ``event`` is the name of the event's class in snake case, and is written nowhere else.
Names and keys are a contract with other programs: add keys, with a default, and never rename or remove one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

import msgspec

from liver_slurm.rundir.event_base import Document as Document
from liver_slurm.rundir.event_base import EventBase, plain
from liver_slurm.rundir.reconfiguration_events import CommitStats as CommitStats
from liver_slurm.rundir.reconfiguration_events import ReconfigurationAborted as ReconfigurationAborted
from liver_slurm.rundir.reconfiguration_events import ReconfigurationCommitted as ReconfigurationCommitted
from liver_slurm.rundir.reconfiguration_events import ReconfigurationPrepared as ReconfigurationPrepared
from liver_slurm.rundir.reconfiguration_events import ReconfigurationStarted as ReconfigurationStarted
from liver_slurm.rundir.reconfiguration_events import ReconfigurationStats as ReconfigurationStats
from liver_slurm.rundir.reconfiguration_events import ReconfigurationStreamed as ReconfigurationStreamed
from liver_slurm.rundir.reconfiguration_events import Route as Route

SCHEMA_VERSION = 1
"""Of the events that this version writes; raised when a key changes its meaning. Runs from before it was written have
no number, and the same keys. It stands in every :class:`CoordinatorStarted`."""

# ---- the coordinator and the run -----------------------------------------------------------------------------------


class CoordinatorStarted(EventBase, frozen=True, kw_only=True):
    """A coordinator process begins to serve."""

    epoch: int = 1
    phase: str = ""
    host: str = ""
    schema_version: int = 0
    """:data:`SCHEMA_VERSION` of this coordinator's events; 0: it is older than that number."""


class Recovered(EventBase, frozen=True, kw_only=True):
    """All members of the live world have come to a restarted coordinator."""

    layout: str
    members: tuple[str, ...]
    step: int


class BegunAnew(EventBase, frozen=True, kw_only=True):
    """All worlds are lost: the run goes on from a checkpoint, or from its beginning."""

    checkpoint: str = ""
    step: int
    steps_lost: int = 0
    reason: str = ""


class GuaranteedJobTaken(EventBase, frozen=True, kw_only=True, tag="live_job_taken"):
    """The scheduler takes the guaranteed job's nodes away."""

    reason: str
    step: int


class Interrupted(EventBase, frozen=True, kw_only=True):
    """This coordinator ends; the run goes on when its job starts again."""

    reason: str = ""
    step: int


class HandedOver(EventBase, frozen=True, kw_only=True):
    """This coordinator ends; the successor job's goes on with the run."""

    reason: str
    step: int


class RunEnded(EventBase, frozen=True, kw_only=True):
    """The run's outcome is decided."""

    outcome: str
    """``finished``, ``failed``, ``cancelled`` or ``stopped``."""
    exit_code: int = 0
    reason: str = ""
    step: int = 0


class SuccessorWanted(EventBase, frozen=True, kw_only=True):
    """A successor of the guaranteed job is about to be submitted."""

    reason: str


class SuccessorSubmitted(EventBase, frozen=True, kw_only=True):
    """The scheduler has accepted the successor."""

    job_id: str


class SuccessorRefused(EventBase, frozen=True, kw_only=True):
    """The scheduler has refused the successor."""

    reason: str
    then: str
    """What happens instead, for people."""


class SuccessorLost(EventBase, frozen=True, kw_only=True):
    """The successor job is no longer there."""

    job_id: str


class CheckpointWritten(EventBase, frozen=True, kw_only=True):
    """A checkpoint is complete on disk."""

    step: int
    seconds: float
    stall_s: float
    """How long training stood still for it."""
    path: str


class CheckpointFailed(EventBase, frozen=True, kw_only=True):
    """A checkpoint could not be written; training goes on."""

    step: int
    seconds: float
    stall_s: float
    error: str


# ---- workers and standby jobs --------------------------------------------------------------------------------------


class StandbyLaunch(EventBase, frozen=True, kw_only=True):
    """Standby jobs are about to be started."""

    count: int
    unit: int
    partition: str
    reason: str


class LaunchRefused(EventBase, frozen=True, kw_only=True):
    """The scheduler has refused standby jobs."""

    reason: str


class StandbyRelease(EventBase, frozen=True, kw_only=True):
    """A standby job of no use is ended."""

    job_id: str
    reason: str


class StandbyReady(EventBase, frozen=True, kw_only=True):
    """A worker of a standby job is warm: it can join a target world at once."""

    worker: str
    host: str | None = None
    device: str = ""
    job_id: str | None = None


class WorkerLeft(EventBase, frozen=True, kw_only=True):
    """A worker has exited, as it was told to or after a notice."""

    worker: str
    host: str = ""
    reason: str = ""


class WorkerLost(EventBase, frozen=True, kw_only=True):
    """A worker is gone without having been told to go."""

    worker: str
    host: str = ""
    role: str = ""
    in_world: bool = False
    """It was a member of the live world."""
    reason: str = ""


class Notice(EventBase, frozen=True, kw_only=True):
    """A worker will go away."""

    worker: str
    host: str = ""
    kind: str = "signal"
    reason: str = ""
    deadline: float | None = None
    """When it will be gone at the earliest, seconds since the epoch; None: nobody will kill it."""
    in_world: bool = False
    """It is a member of the live world."""


class NoticeChanged(EventBase, frozen=True, kw_only=True):
    """The notice of a worker has another kind, or another deadline."""

    worker: str
    host: str = ""
    kind: str = "signal"
    reason: str = ""
    deadline: float | None = None
    in_world: bool = False


class NoticeWithdrawn(EventBase, frozen=True, kw_only=True):
    """A worker stays after all."""

    worker: str
    host: str
    kind: str
    reason: str


class NodesGivenBack(EventBase, frozen=True, kw_only=True):
    """The scheduler has taken nodes of a component of the guaranteed job back, as it was asked to."""

    component: int
    nodes: tuple[str, ...]
    """Those that are free now."""
    kept: int
    """Nodes that are left to the component."""


class NodesKept(EventBase, frozen=True, kw_only=True):
    """The scheduler has refused to take nodes back."""

    component: int
    reason: str


# ---- worlds and reconfigurations -----------------------------------------------------------------------------------


class WorldLive(EventBase, frozen=True, kw_only=True):
    """All members of a committed world have begun its first forward pass."""

    layout: str | None = None
    members: tuple[str, ...] = ()
    """In rank order."""
    step: int = 0


class WorldFailed(EventBase, frozen=True, kw_only=True):
    """The first world could not be formed."""

    reason: str


class PolicyDecided(EventBase, frozen=True, kw_only=True):
    """The policy was asked and its word is new: what was decided, from what, and why.

    Written when the decision or its reason changes, not at each look; figures in the reason may change unsaid. An
    explicit request and members that leave are decided on before any policy is asked: then ``request`` or ``leaving``
    says so.
    """

    policy: str
    """Name in the job file."""
    decision: str
    """``stay``, ``wait``, ``change`` or ``fulfilled``."""
    to: str | None
    """Layout of the next world; None: there is to be none."""
    chosen: int
    """Members of the next world."""
    until: float | None
    """When the policy wants to be asked again, seconds since the epoch; None: when something changes."""
    reason: str
    layout: str
    """Of the live world."""
    available: int
    """Workers that could be in the next world."""
    ready: int
    """Those of them that are in no world."""
    leaving: int
    """Members of the live world that will go away."""
    step_seconds: float
    """Of a step in the live world; 0.0: not known yet."""
    steps_left: int
    automatic: bool
    """The run may grow without being asked."""
    request: int | None
    """Number of the explicit request whose turn it is."""


class ResizeGivenUp(EventBase, frozen=True, kw_only=True):
    """An explicit request is not fulfilled."""

    request: int
    wanted: str
    reason: str


Event = Union[  # noqa: UP007 - msgspec wants a Union it can take apart on Python 3.10
    CoordinatorStarted,
    Recovered,
    BegunAnew,
    GuaranteedJobTaken,
    Interrupted,
    HandedOver,
    RunEnded,
    SuccessorWanted,
    SuccessorSubmitted,
    SuccessorRefused,
    SuccessorLost,
    CheckpointWritten,
    CheckpointFailed,
    StandbyLaunch,
    LaunchRefused,
    StandbyRelease,
    StandbyReady,
    WorkerLeft,
    WorkerLost,
    Notice,
    NoticeChanged,
    NoticeWithdrawn,
    NodesGivenBack,
    NodesKept,
    WorldLive,
    WorldFailed,
    ReconfigurationStarted,
    ReconfigurationPrepared,
    ReconfigurationStreamed,
    ReconfigurationCommitted,
    ReconfigurationAborted,
    PolicyDecided,
    ResizeGivenUp,
]


class UnknownEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of another version: its name is not known here, or its fields do not fit."""

    time: float
    name: str


def event_name(event: Event | type[Event]) -> str:
    """The value of the key ``event``."""
    return str(event.__struct_config__.tag)


def to_document(event: Event) -> Document:
    """The event as a line of the file, its keys in their order there."""
    document = plain(event)
    first = {key: document.pop(key) for key in ("time", "event", "generation")}
    return first | document


def from_document(document: Mapping[str, Any]) -> Event | UnknownEvent:
    """The event of one line of the file; keys that this version does not know are left out.

    Args:
        document: has the key ``event``.
    """
    try:
        return msgspec.convert(document, Event)  # type: ignore[no-any-return]
    except msgspec.ValidationError:
        return UnknownEvent(time=float(document.get("time", 0.0)), name=str(document["event"]))
