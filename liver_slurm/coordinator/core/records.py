"""Records of the journal: all that a new coordinator needs to go on where the last one stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Union

import msgspec

from liver_slurm.rundir.events import CommitStats
from liver_slurm.rundir.worker_names import is_guaranteed, is_of_successor
from liver_slurm.scheduler.ports import JobStart


class _Record(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all records; the tag is the class's name."""


class EpochStarted(_Record, frozen=True, kw_only=True):
    """A coordinator process started."""

    epoch: int
    job_id: str = ""
    """Slurm job that it belongs to; empty: none."""
    restarts: int = 0
    """How often Slurm had started that job again."""
    protocol: int = 0
    """Of the messages that it understands; 0: a record of an earlier version."""


class AttemptStarted(_Record, frozen=True, kw_only=True):
    """Prepare goes out for a target world; its generation number is used up."""

    generation: int
    layout: str
    members: tuple[str, ...]
    source_members: tuple[str, ...]
    reason: str


class AttemptAborted(_Record, frozen=True, kw_only=True):
    """The target world was given up before the commit."""

    generation: int
    reason: str


class Committed(_Record, frozen=True, kw_only=True):
    """The commit record: from here on the target world is the live one."""

    generation: int
    layout: str
    members: tuple[str, ...]
    source_layout: str
    source_members: tuple[str, ...]
    source_generation: int
    step: int
    cause: Literal["start", "notice", "request", "capacity", "successor", "loss"]
    reason: str
    summary: dict[str, Any]
    """:attr:`stats` as they stand in the journal, empty for world 0."""
    held: int = -1
    """Number of the boundary that holds the new world at this very step; -1: none does."""
    held_for: int = -1
    """Number of the request that it waits for."""
    processes: tuple[str, ...] = ()
    """Which process each member is, see :attr:`~.workers.Worker.process`; empty: not known."""

    @property
    def stats(self) -> CommitStats | None:
        """What the reconfiguration did and took; None: this is world 0."""
        return msgspec.convert(self.summary, CommitStats) if self.summary else None


class MembersLost(_Record, frozen=True, kw_only=True):
    """The live world is broken: members of it are lost, or, with none named, a collective of it has failed."""

    generation: int
    members: tuple[str, ...]
    reason: str


class Entered(_Record, frozen=True, kw_only=True):
    """All members of a committed world have begun its first forward pass."""

    generation: int


class BoundaryProposed(_Record, frozen=True, kw_only=True):
    """Members may stop at a step and wait."""

    boundary: int
    step: int = -1
    """-1: a record of an earlier version, which has the number only. If a member refuses, it moves ahead."""
    purpose: Literal["cutover", "checkpoint"] = "cutover"
    generation: int = -1
    """Of the target world that it is for, or for a checkpoint of the live one; -1: none yet."""
    request: int = -1
    """Number of the request that it is for; -1: none."""


class BoundaryConfirmed(_Record, frozen=True, kw_only=True):
    """The step of a boundary is final."""

    boundary: int
    step: int
    purpose: Literal["cutover", "checkpoint"]
    generation: int


class BoundaryClosed(_Record, frozen=True, kw_only=True):
    """A boundary was withdrawn: no member is to stop there any more. A commit record closes all.

    Earlier versions wrote it also when a boundary was confirmed.
    """

    boundary: int


class CheckpointWanted(_Record, frozen=True, kw_only=True):
    """A checkpoint is wanted that has no step yet, or is no longer."""

    wanted: bool = True


class RequestTaken(_Record, frozen=True, kw_only=True):
    """A resize request was accepted."""

    number: int
    layout: str
    workers: int
    at_step: int
    give_back: bool = False


class RequestClosed(_Record, frozen=True, kw_only=True):
    """A resize request was fulfilled or given up."""

    number: int
    fulfilled: bool


class StandbyLaunched(_Record, frozen=True, kw_only=True):
    """The scheduler has accepted standby jobs: these are ours, whatever their names and comments say."""

    job_ids: tuple[str, ...]
    unit: int


class LifeBegan(_Record, frozen=True, kw_only=True):
    """The first worker of a standby job is ready."""

    job_id: str
    partition: str
    time: float


class LifeEnded(_Record, frozen=True, kw_only=True):
    """A standby job goes away or is gone."""

    job_id: str
    time: float
    taken: bool


class StartFailed(_Record, frozen=True, kw_only=True):
    """A standby job ended before a worker of it was ready, and not by our doing."""

    job_id: str
    partition: str
    time: float
    ordered: float = 0.0
    """When it was ordered, with others maybe; 0.0: not known."""


class Measurement(_Record, frozen=True, kw_only=True):
    """What a reconfiguration took, in seconds."""

    generation: int
    added: int
    prepare_s: float
    exposed_s: float
    time: float


class OfferDecided(_Record, frozen=True, kw_only=True):
    """A policy that states its chance has taken or left standby jobs."""

    number: int
    """Of these decisions, counted from 0."""
    time: float
    step: int
    step_seconds: float
    jobs: tuple[str, ...]
    partitions: tuple[str, ...]
    until: float
    """When standby jobs may be started in these partitions again; 0.0: the jobs were taken."""


class WindowTold(_Record, frozen=True, kw_only=True):
    """The event log was told of the next window of a decision on an offer."""

    number: int


class NodesGivenBack(_Record, frozen=True, kw_only=True):
    """Slurm has taken nodes of a component of a guaranteed job back."""

    job_id: str
    component: int
    kept: int
    """Nodes that are left to it."""
    again: bool = False
    """Slurm may take further single nodes of it."""


class BegunAnew(_Record, frozen=True, kw_only=True):
    """All worlds so far are lost: the run goes on from ``checkpoint`` with workers that were in none of them."""

    checkpoint: str
    """Folder that the next world loads; empty: it starts from the seed."""
    step: int
    """Completed steps in it."""
    steps_lost: int
    """Steps beyond it that were trained and will be trained again."""
    reason: str
    trained_until: float = 0.0
    """End of the last step that is on record, lost or not, seconds since the epoch; 0.0: there is none."""


class HandedOver(_Record, frozen=True, kw_only=True):
    """The live world trains in another job, whose coordinator goes on with the run; no other may."""

    job_id: str


class Ended(_Record, frozen=True, kw_only=True):
    """The run's outcome is decided."""

    code: int
    reason: str


Record = Union[  # noqa: UP007 - msgspec wants a Union it can take apart on Python 3.10
    EpochStarted,
    AttemptStarted,
    AttemptAborted,
    Committed,
    MembersLost,
    Entered,
    BoundaryProposed,
    BoundaryConfirmed,
    BoundaryClosed,
    CheckpointWanted,
    RequestTaken,
    RequestClosed,
    StandbyLaunched,
    LifeBegan,
    LifeEnded,
    StartFailed,
    Measurement,
    OfferDecided,
    WindowTold,
    NodesGivenBack,
    BegunAnew,
    HandedOver,
    Ended,
]


def next_epoch(records: Sequence[Record]) -> int:
    """Return the epoch of the coordinator that starts now."""
    return 1 + max((record.epoch for record in records if isinstance(record, EpochStarted)), default=0)


def last_outcome(records: Sequence[Record]) -> Ended | None:
    """Return the run's outcome, if it was decided before; a run that was restarted since has none."""
    last = next((record for record in reversed(records) if isinstance(record, Ended | BegunAnew)), None)
    return last if isinstance(last, Ended) else None


def why_restart(records: Sequence[Record], start: JobStart) -> str | None:
    """Return why the coordinator of ``start`` cannot go on with the live world; None: it can, or there is none.

    A job that is started again has none of its old processes. That also holds for a run that failed: whoever has Slurm
    start its job again wants it to go on. One that finished, or was cancelled on request, stays so.
    """
    last = next((record for record in reversed(records) if isinstance(record, EpochStarted)), None)
    if last is not None and start.job_id and last.job_id and last.job_id != start.job_id:
        return _why_not_succeed(records, last.job_id, start.job_id)
    if last is None or not start.job_id or last.job_id != start.job_id or last.restarts >= start.restarts:
        return None
    ended = next((record for record in reversed(records) if isinstance(record, Ended | BegunAnew)), None)
    if isinstance(ended, Ended) and ended.code != 1:
        return None
    return f"job {start.job_id} was requeued: start {start.restarts + 1}"


def why_strange(records: Sequence[Record], protocol: int) -> str | None:
    """Return why a coordinator of this ``protocol`` must not go on with the run: its workers would be turned away.

    None: it understands them, or there are none that train.
    """
    state = [record for record in records if isinstance(record, Committed | BegunAnew | Ended)]
    last = next((one.protocol for one in reversed(records) if isinstance(one, EpochStarted) and one.protocol), protocol)
    if last == protocol or not state or not isinstance(state[-1], Committed):
        return None
    return (
        f"the workers of this run speak protocol {last}, this version of liver-slurm {protocol}: they train on without "
        "a coordinator; install the version again that they have, or cancel the run and resume it"
    )


def _why_not_succeed(records: Sequence[Record], before: str, job_id: str) -> str | None:
    """Return why the successor cannot go on with the live world: not all guaranteed members are its own.

    It may be, although nothing was handed over, if the job before was killed after its last commit record.
    """
    last = next((one for one in reversed(records) if isinstance(one, Committed | BegunAnew | Ended)), None)
    if not isinstance(last, Committed):
        return None
    lost = [member for member in last.members if is_guaranteed(member) and not is_of_successor(member, job_id)]
    return f"job {before} ended before job {job_id} could take over" if lost else None
