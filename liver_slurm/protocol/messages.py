"""Every message of the control channel, as tagged msgspec structs in msgpack: nothing else is decoded from the network.

Two kinds of peers talk to the coordinator: workers, and clients (the CLI, the Python API). Workers do not talk to each
other on this channel.

Step barrier, without a collective: the coordinator proposes a step that lies ahead (:class:`ProposeBoundary`), each
member votes whether it can still stop there, and when all accept, :class:`ConfirmBoundary` makes the step final. A
member that reaches a proposed step before it is confirmed waits there; a new proposal for the same boundary replaces
the old one.
"""

from __future__ import annotations

from typing import Literal, Union

import msgspec

from liver_slurm.protocol.base import PROTOCOL as PROTOCOL
from liver_slurm.protocol.base import Handover as Handover
from liver_slurm.protocol.base import Message as Message
from liver_slurm.protocol.base import TransferReport as TransferReport
from liver_slurm.protocol.client_messages import CancelRequest as CancelRequest
from liver_slurm.protocol.client_messages import CheckpointRequest as CheckpointRequest
from liver_slurm.protocol.client_messages import Reply as Reply
from liver_slurm.protocol.client_messages import ResizeRequest as ResizeRequest
from liver_slurm.protocol.client_messages import StatusRequest as StatusRequest
from liver_slurm.protocol.client_messages import WorkerEnded as WorkerEnded
from liver_slurm.protocol.parked import Parked as Parked
from liver_slurm.reshard.mirrors import Difference

Stage = Literal["preparing", "prepared", "streaming", "voted"]
"""How far a worker is with a target world; ``streaming``: training waits at the cutover or is in the first step."""

# ---- worker → coordinator ------------------------------------------------------------------------------------------


class Register(Message, frozen=True, kw_only=True):
    """Register a worker: sent at its start, and again to each new coordinator (a new epoch)."""

    protocol: int = PROTOCOL
    run_id: str
    worker: str
    """Unique in the run: ``live-3``, ``standby-1234-0``."""
    role: Literal["live", "standby"]
    host: str
    pid: int
    job_id: str
    """Slurm job that the worker runs in, or the launcher's name for it."""
    restarts: int = 0
    """Times that Slurm had restarted that job when this process began (SLURM_RESTART_COUNT)."""
    began: int = 0
    """Ticks from its machine's start to its own; 0: not said. With host and ``pid``: which process this is."""
    device: str
    """``cpu`` or ``cuda:0``."""
    generation: int = -1
    """Generation of the world that the worker trains in; -1: none."""
    rank: int = -1
    """Not read; stays because workers of earlier versions send it."""
    step: int = 0
    """Completed optimizer steps of the run, as far as this worker knows."""
    warm: bool = False
    """The warm-up is finished, so the worker can join a target world at once."""


class Notice(Message, frozen=True, kw_only=True):
    """Announce that this worker will go away."""

    worker: str
    reason: str
    """Reason for users: ``SIGTERM``, ``SIGUSR2``, ``time limit``."""
    time: float
    """Time at which the notice was seen, seconds since the epoch by the worker's clock, as all here."""
    sent: float = 0.0
    """Time at which this message is sent, perhaps once more; 0.0: it does not say."""
    deadline: float | None = None
    """Time at which the worker will be gone, seconds since the epoch; None: not known to the worker."""
    suspended: bool = False
    """The worker will only be stopped, and reports when it runs again."""
    withdrawn: bool = False
    """The worker was suspended and runs again. A field of the same message, so that a restarted coordinator receives
    only the last of the two."""

    def as_of(self, now: float) -> Notice:
        """Return what it says by the clock of whoever receives it ``now``: clocks of hosts may differ by a minute."""
        if not self.sent:
            return self
        ahead = now - self.sent
        deadline = self.deadline + ahead if self.deadline is not None else None
        return msgspec.structs.replace(self, time=self.time + ahead, deadline=deadline, sent=0.0)


class Heartbeat(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Report a worker's state every ``job.heartbeat`` seconds, and at once when ``warm`` or ``generation`` changes.

    It has all that the coordinator must know to see whether an order or an answer was lost: it says the order again.
    """

    worker: str
    generation: int
    step: int
    step_seconds: float
    """Mean duration of the last steps; 0.0 before the first."""
    warm: bool
    rejected: int = 0
    """Number of messages that this worker dropped because they were malformed, late, or from a stranger."""
    targets: dict[int, Stage] | None = None
    """How far it is with each target world, by generation; None: a worker of an earlier version, which does not say."""
    boundaries: dict[int, tuple[int, bool]] = msgspec.field(default_factory=dict)
    """Step of each boundary that it will stop at, by number, and whether that is final."""
    finished: bool = False
    """It has trained the last step, and written what is to be written then."""
    finished_why: str = ""
    """See :class:`Finished`."""
    notice: Notice | None = None
    """The last notice that it has sent."""
    files_waiting: int = 0
    """Lines of the run's files that wait in this worker because they cannot be written."""
    files_error: str = ""
    """Why; empty: none waits."""
    in_vain: int = 0
    """Steps in a row, the last one included, whose loss or gradient was not finite: they changed nothing."""
    mirror: Literal["none", "partial", "whole", "lost"] = "none"
    """How much of this worker's state its keeper has."""
    validating: tuple[int, float] | None = None
    """Training stands at ``step`` for a validation: samples that are done of it, and estimated seconds that are left;
    None: it does not."""
    mirror_way: str = ""
    """How the world's mirrors are kept, for people; empty: it has none."""
    mirror_bytes: int = 0
    """Host memory that mirrors take in this worker."""
    mirror_proofs: tuple[int, int] = (0, 0)
    """Proofs that were made of mirrors kept in this worker, and those in which one differed from what its owner had."""
    mirror_differed: Difference | None = None
    """The last of these."""
    since_step: float | None = None
    """Seconds since it completed its last step or entered its world; None: a worker of an earlier version."""
    computing: bool = False
    """Its training thread computes a step, or waits for its peers in it: not for samples, a commit, or its user."""
    copying: bool = False
    """It copies a checkpoint to a second place."""


class Prepared(Message, frozen=True, kw_only=True):
    """Report that the worker has built its part of the target world, or could not."""

    worker: str
    generation: int
    ok: bool
    error: str = ""
    seconds: float = 0.0
    state_bytes: int = 0
    """Bytes of state that other workers will send to this one; mode overlap."""
    rate: float = 0.0
    """Bytes a second at which a probe from these workers arrived; 0.0: none was sent."""


class BoundaryVote(Message, frozen=True, kw_only=True):
    """Answer :class:`ProposeBoundary`."""

    worker: str
    boundary: int
    step: int
    """The step that was proposed."""
    accepted: bool
    current_step: int
    """Steps that this worker has completed or begun; a boundary at or below it cannot be met."""


class Streamed(Message, frozen=True, kw_only=True):
    """The worker's vote for or against the commit; for: all its moves are done and its digests compared."""

    worker: str
    generation: int
    ok: bool
    error: str = ""
    report: TransferReport = TransferReport()
    """On the wire its fields are the vote's own; see :mod:`liver_slurm.protocol.wire`."""
    found: Handover = Handover()


class WorldEntered(Message, frozen=True, kw_only=True):
    """Report that the worker has begun the first forward pass of a generation."""

    worker: str
    generation: int
    step: int
    time: float
    """Start of that forward pass, seconds since the epoch."""
    gate_seconds: float = 0.0
    """How long its first optimizer step waited for the commit; mode overlap."""


class CheckpointWritten(Message, frozen=True, kw_only=True):
    """Report that a checkpoint is complete on disk (sent by rank 0), or failed (sent by each rank that saw it fail)."""

    worker: str
    step: int
    ok: bool
    path: str = ""
    error: str = ""
    """Why it failed; if it did not, what about it did not go as it should."""
    seconds: float = 0.0
    stall_seconds: float = 0.0
    """Time that training stood still for the checkpoint."""


class Finished(Message, frozen=True, kw_only=True):
    """Report that the run's last step is trained, and the final checkpoint, if one is wanted, written."""

    worker: str
    step: int
    reason: str = ""
    """Why it is the last, if it is not that of the job file."""


class Failed(Message, frozen=True, kw_only=True):
    """Report, as the last message, that the worker cannot go on."""

    worker: str
    generation: int
    step: int
    error: str
    for_good: bool = False
    """It would come in every world: the run ends."""


class Leaving(Message, frozen=True, kw_only=True):
    """Report that the worker exits now: it was told to, or had a notice while it was in no world."""

    worker: str
    reason: str


# ---- coordinator → worker ------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True, kw_only=True):
    """Answer :class:`Register`. A worker that sees a new epoch has met a restarted coordinator."""

    run_id: str
    epoch: int
    """Number of the coordinator's start; messages of a lower epoch are late."""


class Alive(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Answer :class:`Heartbeat`, so that a worker can tell how long its coordinator has been away.

    It also answers any message of a worker that this coordinator does not know, or took for lost. Such a worker
    registers again: it sees another epoch than its own, or ``known`` is false.
    """

    epoch: int
    known: bool = True
    every: float = 0.0
    """Seconds between heartbeats that the coordinator wants, in a large run; 0.0: ``job.heartbeat``."""


class HeartbeatRequest(Message, frozen=True, kw_only=True):
    """Ask for a :class:`Heartbeat` now: another member's connection is closed, and this one sees whether steps come."""

    epoch: int


class Refused(Message, frozen=True, kw_only=True):
    """Turn a worker away (another run, another protocol, a name that is taken): it exits."""

    reason: str


class Prepare(Message, frozen=True, kw_only=True):
    """Order the worker to build the target world ``generation``, while it goes on with what it does."""

    epoch: int
    generation: int
    layout: str
    members: list[str]
    """Worker of each rank of the target world."""
    source_generation: int
    """The live world's generation; -1: none, state comes from ``checkpoint`` or from the seed."""
    source_layout: str = ""
    source_members: list[str] = msgspec.field(default_factory=list)
    store_host: str
    store_port: int
    checkpoint: str = ""
    """Directory to load from when there is no source world; empty: start from the seed."""
    lost: list[str] = msgspec.field(default_factory=list)
    """Members of the live world that are gone: others that hold the same boxes stand in for them."""
    mirrors: dict[str, str] = msgspec.field(default_factory=dict)
    """Of those that are lost, whose state no other member holds: the member that keeps its mirror."""
    step: int = -1
    """Completed steps that the target world begins with, if it follows a broken one."""
    back: bool = False
    """These are those of a snapshot, which survivors whose state is another one go back to."""
    standing: bool = False
    """The live world is broken and its members stand still: state moves when all are prepared, and all at once."""
    scribe: str = ""
    """The worker that adds to the metrics what a lost one did not write any more; empty: nobody has to."""
    hosts: dict[str, str] = msgspec.field(default_factory=dict)
    """Host of each worker of both worlds, where it is known: state is fetched from the same host where possible."""


class ProposeBoundary(Message, frozen=True, kw_only=True):
    """Propose to stop before step ``step`` begins (that is, with ``step`` steps completed), for ``purpose``."""

    epoch: int
    boundary: int
    """Number of the boundary; proposals with the same number replace each other."""
    step: int
    purpose: Literal["cutover", "checkpoint"]
    generation: int = -1
    """Of the target world, for a cutover; of the world that votes, for a checkpoint. -1: not known."""


class ConfirmBoundary(Message, frozen=True, kw_only=True):
    """Make a boundary final, as all have accepted. Joiners of a cutover get it too, and streaming begins."""

    epoch: int
    boundary: int
    step: int
    purpose: Literal["cutover", "checkpoint"]
    generation: int = -1
    begin: int = -1
    """First step in which state is streamed while training runs; -1: state moves at the cutover."""


class WithdrawBoundary(Message, frozen=True, kw_only=True):
    """Cancel a boundary; a member that waits there trains on."""

    epoch: int
    boundary: int


class Commit(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Announce that the commit record is written. Members enter the target world, all others leave or wait."""

    epoch: int
    generation: int
    step: int
    held: int = -1
    """Number of the boundary that holds the new world at this very step, for the next resize; -1: none does. Members
    must agree on that: in mode overlap they are in the step by now."""


class Abort(Message, frozen=True, kw_only=True):
    """Give the target world up; members of the live world train on, joiners are standbys again."""

    epoch: int
    generation: int
    reason: str


class Halt(Message, frozen=True, kw_only=True):
    """Announce that the world of a generation is broken: its members leave their collectives, and answer ``Parked``."""

    epoch: int
    generation: int
    reason: str


class Leave(Message, frozen=True, kw_only=True):
    """Order the worker to exit now."""

    epoch: int
    reason: str


FromWorker = Union[  # noqa: UP007 - msgspec wants a Union it can take apart on Python 3.10
    Register, Heartbeat, Notice, Prepared, BoundaryVote, Streamed, WorldEntered, CheckpointWritten, Parked, Finished,
    Failed, Leaving
]  # fmt: skip
ToWorker = Union[  # noqa: UP007
    Welcome, Alive, HeartbeatRequest, Refused, Prepare, ProposeBoundary, ConfirmBoundary, WithdrawBoundary, Commit,
    Abort, Halt, Leave
]  # fmt: skip
FromClient = Union[StatusRequest, ResizeRequest, CheckpointRequest, CancelRequest, WorkerEnded]  # noqa: UP007
ToCoordinator = Union[FromWorker, FromClient]  # noqa: UP007
