"""The vocabulary of ``events.jsonl``: one struct per event, and the JSON form of each. Pure.

An event's name, which is the value of the key ``event``, is its class's name in snake case and is written nowhere else.
Names and keys are a contract with other programs: add keys, with a default, and never rename or remove one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypedDict, Union

import msgspec

SCHEMA_VERSION = 1
"""Of the events that this version writes; raised when a key changes its meaning. Runs from before it was written have
no number, and the same keys. It stands in every :class:`CoordinatorStarted`."""

Document = dict[str, Any]
"""One line of the file: at least ``{"time": seconds since the epoch, "event": name}``."""


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _plain(struct: msgspec.Struct) -> Document:
    """Keys and values as JSON has them, and as they are when read back: lists, no tuples."""
    found: Document = msgspec.to_builtins(struct)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=_snake):
    time: float = 0.0
    """When it was written, seconds since the epoch; 0.0: it has not been yet."""
    generation: int = -1
    """Of the world that it is about, the live one unless another is meant; -1: there is none."""


# ---- the coordinator and the run -----------------------------------------------------------------------------------


class CoordinatorStarted(_Event, frozen=True, kw_only=True):
    """A coordinator process begins to serve."""

    epoch: int = 1
    phase: str = ""
    host: str = ""
    schema_version: int = 0
    """:data:`SCHEMA_VERSION` of this coordinator's events; 0: it is older than that number."""


class Recovered(_Event, frozen=True, kw_only=True):
    """All members of the live world have come to a restarted coordinator."""

    layout: str
    members: tuple[str, ...]
    step: int


class BegunAnew(_Event, frozen=True, kw_only=True):
    """All worlds are lost: the run goes on from a checkpoint, or from its beginning."""

    checkpoint: str = ""
    step: int
    steps_lost: int = 0
    reason: str = ""


class LiveJobTaken(_Event, frozen=True, kw_only=True):
    """The scheduler takes the live job's nodes away."""

    reason: str
    step: int


class Interrupted(_Event, frozen=True, kw_only=True):
    """This coordinator ends; the run goes on when its job starts again."""

    reason: str = ""
    step: int


class HandedOver(_Event, frozen=True, kw_only=True):
    """This coordinator ends; the successor job's goes on with the run."""

    reason: str
    step: int


class RunEnded(_Event, frozen=True, kw_only=True):
    """The run's outcome is decided."""

    outcome: str
    """``finished``, ``failed``, ``cancelled`` or ``stopped``."""
    exit_code: int = 0
    reason: str = ""
    step: int = 0


class SuccessorWanted(_Event, frozen=True, kw_only=True):
    """A successor of the live job is about to be submitted."""

    reason: str


class SuccessorSubmitted(_Event, frozen=True, kw_only=True):
    """The scheduler has accepted the successor."""

    job_id: str


class SuccessorRefused(_Event, frozen=True, kw_only=True):
    """The scheduler has refused the successor."""

    reason: str
    then: str
    """What happens instead, for people."""


class SuccessorLost(_Event, frozen=True, kw_only=True):
    """The successor job is no longer there."""

    job_id: str


class CheckpointWritten(_Event, frozen=True, kw_only=True):
    """A checkpoint is complete on disk."""

    step: int
    seconds: float
    stall_s: float
    """How long training stood still for it."""
    path: str


class CheckpointFailed(_Event, frozen=True, kw_only=True):
    """A checkpoint could not be written; training goes on."""

    step: int
    seconds: float
    stall_s: float
    error: str


# ---- workers and standby jobs --------------------------------------------------------------------------------------


class StandbyLaunch(_Event, frozen=True, kw_only=True):
    """Standby jobs are about to be started."""

    count: int
    unit: int
    partition: str
    reason: str


class LaunchRefused(_Event, frozen=True, kw_only=True):
    """The scheduler has refused standby jobs."""

    reason: str


class StandbyRelease(_Event, frozen=True, kw_only=True):
    """A standby job of no use is ended."""

    job_id: str
    reason: str


class StandbyReady(_Event, frozen=True, kw_only=True):
    """A worker of a standby job is warm: it can join a target world at once."""

    worker: str
    host: str | None = None
    device: str = ""
    job_id: str | None = None


class WorkerLeft(_Event, frozen=True, kw_only=True):
    """A worker has exited, as it was told to or after a notice."""

    worker: str
    host: str = ""
    reason: str = ""


class WorkerLost(_Event, frozen=True, kw_only=True):
    """A worker is gone without having been told to go."""

    worker: str
    host: str = ""
    role: str = ""
    in_world: bool = False
    """It was a member of the live world."""
    reason: str = ""


class Notice(_Event, frozen=True, kw_only=True):
    """A worker will go away."""

    worker: str
    host: str = ""
    kind: str = "signal"
    reason: str = ""
    deadline: float | None = None
    """When it will be gone at the earliest, seconds since the epoch; None: nobody will kill it."""
    in_world: bool = False
    """It is a member of the live world."""


class NoticeChanged(_Event, frozen=True, kw_only=True):
    """The notice of a worker has another kind, or another deadline."""

    worker: str
    host: str = ""
    kind: str = "signal"
    reason: str = ""
    deadline: float | None = None
    in_world: bool = False


class NoticeWithdrawn(_Event, frozen=True, kw_only=True):
    """A worker stays after all."""

    worker: str
    host: str
    kind: str
    reason: str


class NodesGivenBack(_Event, frozen=True, kw_only=True):
    """The scheduler has taken nodes of a component of the live job back, as it was asked to."""

    component: int
    nodes: tuple[str, ...]
    """Those that are free now."""
    kept: int
    """Nodes that are left to the component."""


class NodesKept(_Event, frozen=True, kw_only=True):
    """The scheduler has refused to take nodes back."""

    component: int
    reason: str


# ---- worlds and reconfigurations -----------------------------------------------------------------------------------


class Route(TypedDict):
    """Who goes where: what the events of a reconfiguration have in common, as arguments for their constructors."""

    source: str
    to: str
    cause: str
    members: tuple[str, ...]
    joiners: tuple[str, ...]
    leavers: tuple[str, ...]


class WorldLive(_Event, frozen=True, kw_only=True):
    """All members of a committed world have begun its first forward pass."""

    layout: str | None = None
    members: tuple[str, ...] = ()
    """In rank order."""
    step: int = 0


class WorldFailed(_Event, frozen=True, kw_only=True):
    """The first world could not be formed."""

    reason: str


class ReconfigurationStarted(_Event, frozen=True, kw_only=True):
    """A target world is being prepared; ``generation`` is that world's."""

    source: str = msgspec.field(name="from", default="")
    """Layout of the live world."""
    to: str
    """Layout of the target world."""
    cause: str = ""
    """``notice``, ``request``, ``capacity`` or ``successor``."""
    members: tuple[str, ...] = ()
    """Of the target world, in rank order."""
    joiners: tuple[str, ...] = ()
    leavers: tuple[str, ...] = ()
    reason: str = ""


class ReconfigurationPrepared(_Event, frozen=True, kw_only=True):
    """All workers have built their part of the target world."""

    prepare_s: float
    stream_steps: int | msgspec.UnsetType = msgspec.UNSET
    """Steps before the cutover from which state streams; only in mode overlap."""
    wire_s: float | msgspec.UnsetType = msgspec.UNSET
    """Estimate of the time that state takes on the wire; only in mode overlap."""
    reason: str = ""


class ReconfigurationStreamed(_Event, frozen=True, kw_only=True):
    """All workers have moved their state and voted for the commit."""

    stream_s: float
    reason: str = ""


class ReconfigurationStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a reconfiguration did and took, as its commit record, its event and the status document say.

    Bytes and digests are sums over all workers, peaks and seconds the maximum. Fields with a default are younger than
    the rest: in files of older versions they are missing.
    """

    source: str = msgspec.field(name="from")
    to: str
    cause: str
    members: tuple[str, ...]
    joiners: tuple[str, ...]
    leavers: tuple[str, ...]
    reason: str
    mode: str
    """``overlap`` or ``pause``: what was done, which may be less than what the job file asks for."""
    cutover_step: int
    """Steps that the old world has completed."""
    prepare_s: float
    plan_s: float
    stream_s: float
    bytes_moved: int
    bytes_remote: int
    bytes_local: int
    bytes_early: int = 0
    bytes_gradients: int = 0
    hook_s: float = 0.0
    gradient_staging_bytes: int = 0
    staging_peak_bytes: int
    memory_peak_bytes: int
    state_peak_bytes: int = 0
    late_layers: int = 0
    digests_checked: int


class CommitStats(ReconfigurationStats, frozen=True, kw_only=True):
    """What is known at the commit, with what the pause will be counted from."""

    paused_at: float
    """End of the old world's last optimizer step, seconds since the epoch."""
    gap_s: float
    """The gap that two steps have anyway."""

    def to_document(self) -> Document:
        """The field ``summary`` of a commit record."""
        return _plain(self)

    def committed(self, generation: int, time: float, began: float, gate_s: float) -> ReconfigurationCommitted:
        """The event, when all members of the new world, ``generation``, have entered it.

        Args:
            generation: of the new world.
            time: now, seconds since the epoch.
            began: when the last member began its first forward pass, seconds since the epoch.
            gate_s: how long the first optimizer step waited for the commit.
        """
        known = msgspec.structs.asdict(self)
        pause_s = max(0.0, began - known.pop("paused_at") - known.pop("gap_s"))
        return ReconfigurationCommitted(
            **known,
            generation=generation,
            time=time,
            pause_s=pause_s,
            gate_s=gate_s,
            exposed_s=pause_s + gate_s + self.hook_s,
        )


class ReconfigurationCommitted(ReconfigurationStats, frozen=True, kw_only=True, tag_field="event", tag=_snake):
    """A reconfiguration is over: everybody trains in the new world."""

    time: float = 0.0
    generation: int = -1
    pause_s: float
    """Training stood still from the old world's last optimizer step to the new one's first forward pass, less the gap
    that two steps have anyway."""
    gate_s: float = 0.0
    """The first optimizer step of the new world waited for the commit."""
    exposed_s: float = 0.0
    """All that training waited: ``pause_s + gate_s + hook_s``."""


class ReconfigurationAborted(_Event, frozen=True, kw_only=True):
    """The target world was given up before the commit; the live world trains on."""

    reason: str = ""
    source: str = msgspec.field(name="from", default="")
    to: str = ""
    cause: str = ""
    members: tuple[str, ...] = ()
    joiners: tuple[str, ...] = ()
    leavers: tuple[str, ...] = ()


class ResizeGivenUp(_Event, frozen=True, kw_only=True):
    """An explicit request is not fulfilled."""

    request: int
    wanted: str
    reason: str


Event = Union[  # noqa: UP007 - msgspec wants a Union it can take apart on Python 3.10
    CoordinatorStarted,
    Recovered,
    BegunAnew,
    LiveJobTaken,
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
    document = _plain(event)
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
