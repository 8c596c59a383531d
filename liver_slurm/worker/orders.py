"""Orders of the coordinator, and what a worker does about each: what comes again is answered again, not obeyed twice.

No clock and no sockets: the control thread and the tests' simulation both use :class:`Orders`.
"""

from __future__ import annotations

import logging
from typing import Protocol

from liver_slurm.protocol.messages import (
    Abort,
    BoundaryVote,
    Commit,
    ConfirmBoundary,
    FromWorker,
    Halt,
    Heartbeat,
    HeartbeatRequest,
    Leave,
    Prepare,
    ProposeBoundary,
    Refused,
    Register,
    ToWorker,
    WithdrawBoundary,
)
from liver_slurm.worker.directives import Directives

log = logging.getLogger(__name__)


class WorkerPort(Protocol):
    """The worker as its control thread sees it; implementations must not block."""

    name: str

    def registration(self) -> Register:
        """Return the worker's identity, its present world and step."""

    def heartbeat(self, rejected: int, voted: int) -> Heartbeat:
        """Return the worker's present step and speed, and how far it is with target worlds.

        Args:
            rejected: number of messages that were dropped.
            voted: generation of the target world that it has voted on last.
        """

    def engaged(self) -> bool:
        """Return whether the worker is in the live world or about to join one, so that only the coordinator may let it
        exit."""

    def halt(self, message: Halt) -> None:
        """Have the training thread leave the collectives of a broken world, from another thread."""

    def prepare(self, message: Prepare) -> None:
        """Start to build a target world, in another thread."""

    def confirmed(self, message: ConfirmBoundary) -> None:
        """Learn that the step of a cutover is final: state may begin to leave or to arrive."""

    def expects(self, generation: int) -> bool:
        """Return whether a target world of this generation is prepared here, or being prepared."""

    def give_up(self, generation: int) -> bool:
        """Discard a target world (-1: all); returns whether training waits for the verdict on it."""

    def noticed(self) -> None:
        """Learn of a notice that came while the worker is engaged."""

    def orphaned(self) -> None:
        """Learn that the coordinator has been away for longer than job.orphan_timeout."""


class Channel(Protocol):
    """The worker's end of the control channel, as orders need it."""

    rejected: int

    @property
    def voted(self) -> int:
        """Generation of the target world that the worker has voted on last; -1: it never has."""

    def send(self, message: FromWorker) -> None:
        """Send without waiting."""

    def answer_to(self, order: ToWorker) -> FromWorker | None:
        """Return the answer that ``order`` has had already; None: it is new, or still being carried out."""


class Orders:
    """Obeys orders as they come, which need not be as they were sent."""

    def __init__(self, worker: WorkerPort, directives: Directives) -> None:
        self._worker, self._directives = worker, directives
        self._newest = -1
        """Newest generation of which a Prepare or an end has come: the coordinator uses each number once."""

    def obey(self, message: ToWorker, channel: Channel) -> None:
        """Do what a message says."""
        directives = self._directives
        answer = channel.answer_to(message)
        if answer is not None:
            channel.send(answer)
        elif isinstance(message, Prepare):
            self._prepare(message, channel)
        elif isinstance(message, ProposeBoundary):
            self._vote(message, channel)
        elif isinstance(message, ConfirmBoundary):
            if directives.awaits(message):
                self._worker.confirmed(message)
                directives.confirm(message)
        elif isinstance(message, WithdrawBoundary):
            directives.withdraw(message.boundary)
        elif isinstance(message, Commit):
            if not (self._worker.expects(message.generation) and directives.decide(message)):
                channel.rejected += 1  # a repetition, or for a world that this worker does not know
        elif isinstance(message, Abort):
            self._newest = max(self._newest, message.generation)
            waited_for = self._worker.give_up(message.generation)
            directives.abort(message, waited_for)
        elif isinstance(message, Halt):
            self._worker.halt(message)
        elif isinstance(message, HeartbeatRequest):
            channel.send(self._worker.heartbeat(channel.rejected, channel.voted))
        elif isinstance(message, Leave | Refused):
            log.info("told to leave: %s", message.reason)
            directives.refused = isinstance(message, Refused)
            directives.leave(message.reason)
            self._worker.give_up(-1)

    def _prepare(self, message: Prepare, channel: Channel) -> None:
        if message.generation > self._newest:
            self._newest = message.generation
            self._worker.prepare(message)
        else:
            channel.rejected += 1  # being prepared, or given up before word of it came

    def _vote(self, message: ProposeBoundary, channel: Channel) -> None:
        vote = self._directives.propose(message)
        if vote is None:
            channel.rejected += 1
            return
        accepted, current = vote
        channel.send(
            BoundaryVote(
                worker=self._worker.name,
                boundary=message.boundary,
                step=message.step,
                accepted=accepted,
                current_step=current,
            )
        )
