"""A worker's session with the coordinator: when it is registered, and what it says again. No sockets, no clock."""

from __future__ import annotations

import msgspec

from liver_slurm.protocol.messages import (
    Alive,
    Commit,
    ConfirmBoundary,
    Finished,
    FromWorker,
    Halt,
    Heartbeat,
    Notice,
    Parked,
    Prepare,
    Prepared,
    Refused,
    Streamed,
    ToWorker,
    Welcome,
    WorldEntered,
)

_LASTING = (Notice, WorldEntered, Parked, Finished)
"""What a restarted coordinator is told again: the one that it was sent to may have died before it could act."""
_ANSWERS: dict[type[ToWorker], type[FromWorker]] = {
    Prepare: Prepared,
    ConfirmBoundary: Streamed,
    Commit: WorldEntered,
    Halt: Parked,
}
"""What answers each order, once it is carried out: an order that comes again gets the same answer again."""


class Session:
    """Registration with coordinators of one epoch after the other, and the messages that must not be lost.

    Nothing but a registration may be sent before the coordinator has welcomed the worker; what is said until then is
    kept, of heartbeats the last.

    ``rejected`` counts messages that were dropped, of another epoch than the coordinator's.
    """

    def __init__(self) -> None:
        self.epoch = -1
        """Epoch of the coordinator that has welcomed this worker; -1: it is to register."""
        self.rejected = 0
        self.every = 0.0
        """Seconds between heartbeats that the coordinator wants; 0.0: those of the job file."""
        self._waiting: list[FromWorker] = []
        self._last: dict[type[FromWorker], FromWorker] = {}

    def say(self, message: FromWorker) -> list[FromWorker]:
        """Return what is to be sent now that the worker says ``message``; nothing before it is registered."""
        if isinstance(message, Heartbeat):
            message = self._with_last(message)
            self._waiting = [one for one in self._waiting if not isinstance(one, Heartbeat)]
        if isinstance(message, (*_LASTING, *_ANSWERS.values())):
            self._last[type(message)] = message
        if self.epoch >= 0:
            return [message]
        self._waiting.append(message)
        return []

    def hear(self, message: ToWorker) -> tuple[bool, list[FromWorker]]:
        """Take in a message.

        Returns:
            whether it is for the worker, and what is to be sent now.
        """
        if isinstance(message, Welcome):
            return False, self._welcomed(message.epoch) if message.epoch > self.epoch else []
        if isinstance(message, Refused):
            return True, []
        if isinstance(message, Alive):
            self.every = message.every
            if self.epoch >= 0 and (message.epoch != self.epoch or not message.known):
                self.epoch = -1  # it does not know us
            return False, []
        if message.epoch != self.epoch:
            self.rejected += 1
            return False, []
        return True, []

    def answer_to(self, order: ToWorker) -> FromWorker | None:
        """Return the answer that ``order`` has had already; None: it is new, or still being carried out."""
        if isinstance(order, ConfirmBoundary) and order.purpose != "cutover":
            return None  # the checkpoint itself is the answer
        kind = _ANSWERS.get(type(order))
        last = self._last.get(kind) if kind is not None else None
        same = last is not None and getattr(last, "generation", None) == getattr(order, "generation", None)
        return last if same else None

    @property
    def voted(self) -> int:
        """Generation of the target world that the worker has voted on last; -1: it never has."""
        last = self._last.get(Streamed)
        return last.generation if isinstance(last, Streamed) else -1

    def _welcomed(self, epoch: int) -> list[FromWorker]:
        self.epoch = epoch
        waiting, self._waiting = self._waiting, []
        again = [self._last[kind] for kind in _LASTING if kind in self._last]
        return [message for message in again if message not in waiting] + waiting

    def _with_last(self, beat: Heartbeat) -> Heartbeat:
        notice, finished = self._last.get(Notice), self._last.get(Finished)
        if notice is None and finished is None:
            return beat
        why = finished.reason if isinstance(finished, Finished) else ""
        return msgspec.structs.replace(beat, notice=notice, finished=finished is not None, finished_why=why)
