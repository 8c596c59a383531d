"""The vocabulary of ``events.jsonl``: one struct per event, and the JSON form of each. Pure.

Those of a reconfiguration are in :mod:`liver_slurm.rundir.reconfiguration_events`, those of decisions in
:mod:`liver_slurm.rundir.policy_events`, those of standby jobs and of workers that come in
:mod:`liver_slurm.rundir.standby_events`, those of workers and nodes that go in
:mod:`liver_slurm.rundir.worker_events`, and all have their names here too. The value of the key ``event`` is the name
of the event's class in snake case, and is written nowhere else.
Names and keys are a contract with other programs: add keys, with a default, and never rename or remove one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union, get_args

import msgspec

from liver_slurm.rundir.event_base import Document as Document
from liver_slurm.rundir.event_base import EventBase, plain
from liver_slurm.rundir.policy_events import DecisionWindow as DecisionWindow
from liver_slurm.rundir.policy_events import Offered as Offered
from liver_slurm.rundir.policy_events import PolicyDecided as PolicyDecided
from liver_slurm.rundir.policy_events import ResizeGivenUp as ResizeGivenUp
from liver_slurm.rundir.reconfiguration_events import CommitStats as CommitStats
from liver_slurm.rundir.reconfiguration_events import ReconfigurationAborted as ReconfigurationAborted
from liver_slurm.rundir.reconfiguration_events import ReconfigurationCommitted as ReconfigurationCommitted
from liver_slurm.rundir.reconfiguration_events import ReconfigurationPrepared as ReconfigurationPrepared
from liver_slurm.rundir.reconfiguration_events import ReconfigurationStarted as ReconfigurationStarted
from liver_slurm.rundir.reconfiguration_events import ReconfigurationStats as ReconfigurationStats
from liver_slurm.rundir.reconfiguration_events import ReconfigurationStreamed as ReconfigurationStreamed
from liver_slurm.rundir.reconfiguration_events import RecoveryPlanned as RecoveryPlanned
from liver_slurm.rundir.reconfiguration_events import Route as Route
from liver_slurm.rundir.standby_events import CapacityChanged as CapacityChanged
from liver_slurm.rundir.standby_events import LaunchRefused as LaunchRefused
from liver_slurm.rundir.standby_events import StandbyFailed as StandbyFailed
from liver_slurm.rundir.standby_events import StandbyJobChanged as StandbyJobChanged
from liver_slurm.rundir.standby_events import StandbyLaunch as StandbyLaunch
from liver_slurm.rundir.standby_events import StandbyReady as StandbyReady
from liver_slurm.rundir.standby_events import StandbyRelease as StandbyRelease
from liver_slurm.rundir.standby_events import WorkerRegistered as WorkerRegistered
from liver_slurm.rundir.worker_events import MirrorDiffered as MirrorDiffered
from liver_slurm.rundir.worker_events import NodesGivenBack as NodesGivenBack
from liver_slurm.rundir.worker_events import NodesKept as NodesKept
from liver_slurm.rundir.worker_events import Notice as Notice
from liver_slurm.rundir.worker_events import NoticeChanged as NoticeChanged
from liver_slurm.rundir.worker_events import NoticeWithdrawn as NoticeWithdrawn
from liver_slurm.rundir.worker_events import WorkerLeft as WorkerLeft
from liver_slurm.rundir.worker_events import WorkerLost as WorkerLost

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
    job_started: float = 0.0
    """When Slurm started the guaranteed job, seconds since the epoch; 0.0: not known, or no Slurm job."""


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
    trained_until: float = 0.0
    """End of the last step that is on record, also if it is lost, seconds since the epoch; 0.0: not known."""


class StrangersRefused(EventBase, frozen=True, kw_only=True):
    """Somebody without the run's key has called at the coordinator's ports; both numbers are since its start."""

    control: int
    """At the control channel."""
    store: int
    """At the rendezvous store."""


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


class CheckpointRefused(EventBase, frozen=True, kw_only=True):
    """A checkpoint is not used: it is damaged, or others may have changed it. An older one is taken."""

    path: str
    error: str


class CheckpointsLeft(EventBase, frozen=True, kw_only=True):
    """An old checkpoint could not be removed; that is tried again after the next one."""

    error: str


class StepsInVain(EventBase, frozen=True, kw_only=True):
    """The loss or gradient of the last steps is not finite: they change nothing; said again after each tenfold."""

    step: int
    """The last of them."""
    in_a_row: int


class FilesBehind(EventBase, frozen=True, kw_only=True):
    """Lines of the run's files cannot be written and wait in a process, or (without an error) all are written again."""

    worker: str
    """Whose they are; ``coordinator``: events, and what it decides waits too."""
    waiting: int
    error: str


class CheckpointFailed(EventBase, frozen=True, kw_only=True):
    """A checkpoint could not be written; training goes on."""

    step: int
    seconds: float
    stall_s: float
    error: str


class NotificationFailed(EventBase, frozen=True, kw_only=True):
    """Somebody outside could not be told of a turn in the run's life; it is told again only if the error changes."""

    channel: str
    """``command``, ``webhook``, or ``queue``: too many messages waited."""
    about: str
    """The turn."""
    error: str
    failures: int
    """Of this coordinator, so far."""


# ---- worlds and reconfigurations -----------------------------------------------------------------------------------


class WorldLive(EventBase, frozen=True, kw_only=True):
    """All members of a committed world have begun its first forward pass."""

    layout: str | None = None
    members: tuple[str, ...] = ()
    """In rank order."""
    step: int = 0
    prepare_s: float = 0.0
    """How long it was prepared for; 0.0: not known to this coordinator, or written by an older one."""


class WorldFailed(EventBase, frozen=True, kw_only=True):
    """The first world could not be formed."""

    reason: str


Event = Union[  # noqa: UP007 - msgspec wants a Union it can take apart on Python 3.10
    CoordinatorStarted,
    Recovered,
    BegunAnew,
    StrangersRefused,
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
    CheckpointRefused,
    FilesBehind,
    StepsInVain,
    CheckpointsLeft,
    NotificationFailed,
    StandbyLaunch,
    LaunchRefused,
    StandbyFailed,
    StandbyRelease,
    StandbyJobChanged,
    CapacityChanged,
    WorkerRegistered,
    StandbyReady,
    WorkerLeft,
    WorkerLost,
    MirrorDiffered,
    RecoveryPlanned,
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
    DecisionWindow,
    ResizeGivenUp,
]


class UnknownEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of another version: its name is not known here, or its fields do not fit."""

    time: float
    name: str


def event_name(event: Event | type[Event]) -> str:
    """Return the value of the key ``event``."""
    return str(event.__struct_config__.tag)


def to_document(event: Event) -> Document:
    """Return the event as a line of the file, its keys in their order there."""
    document = plain(event)
    first = {key: document.pop(key) for key in ("time", "event", "generation")}
    return first | document


_KINDS: dict[str, Any] = {event_name(kind): kind for kind in get_args(Event)}


def from_document(document: Mapping[str, Any]) -> Event | UnknownEvent:
    """Return the event of a line of the file, which has the key ``event``.

    Keys that are not known here are left out.
    """
    name = str(document["event"])
    try:
        return msgspec.convert(document, _KINDS[name])  # type: ignore[no-any-return]  # of the union, 30 times slower
    except (KeyError, msgspec.ValidationError):
        return UnknownEvent(time=float(document.get("time", 0.0)), name=name)
