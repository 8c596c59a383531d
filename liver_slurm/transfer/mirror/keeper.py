"""The keeper's part of a mirror: it takes what the owner sends, and makes each update that the owner has made."""

from __future__ import annotations

import logging
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from liver_slurm.base.errors import TransferError, traceback_of
from liver_slurm.base.host_memory import available_memory
from liver_slurm.engine.replica import Groups, Replica, TrainedBox
from liver_slurm.engine.update_rules import Updated, update
from liver_slurm.reshard.mirrors import Extent
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.transfer.checksum import memory
from liver_slurm.transfer.connections import hang_up, receive_exactly
from liver_slurm.transfer.mirror.frames import (
    ACKNOWLEDGEMENT,
    HEADER_BYTES,
    LONGEST_DESCRIPTION,
    Header,
    Kind,
    Room,
    decode_description,
    digest_of,
    room_for,
)
from liver_slurm.transfer.mirror.proof import Proofs, compare
from liver_slurm.transfer.optimizer_replay import decode_groups

log = logging.getLogger(__name__)

_LONGEST_TABLE = 1 << 20
"""Bytes; no table of hyperparameters is longer."""


class _Pending(NamedTuple):
    """A step whose update may be made or not: that is not known yet."""

    step: int
    updates: int
    groups: Groups | None
    """None: the step makes no update."""


Replay = Callable[[Sequence[TrainedBox], int, Groups], None]
"""Makes an update of boxes in place, given how many were made before, and its hyperparameters."""


def replay(boxes: Sequence[TrainedBox], updates: int, groups: Groups) -> None:
    """Make the update that the boxes' gradients are of."""
    alike: dict[tuple[GroupSpec, tuple[str, ...]], list[Updated]] = defaultdict(list)
    for box in boxes:
        alike[box.group, box.moments].append((*box.state, box.gradient()))
    with torch.no_grad():
        for (group, moments), members in alike.items():
            update(members, updates, groups[group], moments)


class MirrorKeeper:
    """A thread of its own reads; :meth:`extent` and :attr:`verified` may be asked by any."""

    def __init__(self, connection: socket.socket, owner: str, proofs: Proofs, make: Replay = replay) -> None:
        """
        Args:
            connection: from the owner, both ways.
            owner: name of the worker.
            proofs: of this worker.
            make: makes updates.
        """
        self._connection, self.owner = connection, owner
        self._proofs, self._make = proofs, make
        self._verified = -1
        self._room: Room | None = None
        self._held = 0
        """Boxes that are here."""
        self._step = -1
        self._pending: _Pending | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        """Read from now on."""
        self._thread.start()

    def join(self) -> None:
        """Wait until nothing is read any more; the connection must be given up."""
        self._thread.join()

    @property
    def nbytes(self) -> int:
        """Host memory that the mirror takes."""
        with self._lock:
            return self._room.nbytes if self._room is not None else 0

    @property
    def verified(self) -> int:
        """Completed steps in the state that was proven last to be what the owner had; -1: none was."""
        with self._lock:
            return self._verified

    def extent(self) -> Extent:
        with self._lock:
            if self._room is None or self._held < self._room.boxes:
                return Extent(-1, False)
            return Extent(self._step, self._pending is not None)

    def state_after(self, step: int) -> Replica:
        """Return the owner's state after ``step`` completed steps.

        For good: call it once the connection is given up.

        Raises:
            TransferError: that cannot be had.
        """
        self.join()
        extent = self.extent()
        if self._room is None or not extent.reaches(step):
            raise TransferError(f"the mirror of {self.owner} does not reach step {step}: it is at {extent.step}")
        if step > extent.step:
            self._fold()
        return self._room.replica

    # ---- the thread

    def _run(self) -> None:
        try:
            while True:
                self._take(self._header())
        except OSError as error:
            log.info("the mirror of %s is not updated any more: %s", self.owner, error)
        except Exception as error:  # a thread's edge: damaged messages may raise anything
            log.warning("the mirror of %s is not updated any more: %s", self.owner, error, exc_info=traceback_of(error))
        finally:
            hang_up(self._connection)  # the owner is not to wait for an answer

    def _header(self) -> Header:
        data = bytearray(HEADER_BYTES)
        receive_exactly(self._connection, memoryview(data))
        return Header.decode(data)

    def _take(self, header: Header) -> None:
        if header.kind is Kind.DESCRIPTION:
            self._describe(header)
            return
        if self._room is None:
            raise TransferError("a frame came before the description")
        if header.kind is Kind.MADE:
            if self._pending is None or self._pending.step != header.step:
                raise TransferError("an update was made whose gradients have not come")
            self._fold()
            return
        if self._pending is not None and self._pending.groups is not None:
            raise TransferError("gradients came before the last update was made")
        if header.kind is Kind.PROOF:
            self._prove(header, self._room)
            return
        if header.kind is Kind.GRADIENTS:
            self._receive(header, self._room)
        elif header.kind is Kind.PRIMED:
            self._prime(header, self._room)
        elif header.kind is Kind.SKIPPED:
            self._wait_for(header.step, None)
        else:
            raise TransferError("a frame came that is of another kind of mirror")
        self._connection.sendall(ACKNOWLEDGEMENT.pack(header.step))

    def _describe(self, header: Header) -> None:
        if self._room is not None or header.nbytes > LONGEST_DESCRIPTION:
            raise TransferError("a description came twice, or is too long")
        data = bytearray(header.nbytes)
        receive_exactly(self._connection, memoryview(data))
        boxes = decode_description(data)
        needed, spare = room_for(boxes), available_memory()
        if needed > spare // 2:
            raise TransferError(f"it takes {needed} bytes, and this machine has {spare} to spare")
        room = Room(boxes)
        with self._lock:
            self._room = room
        log.info("keeps the mirror of %s, %d bytes", self.owner, room.nbytes)

    def _receive(self, header: Header, room: Room) -> None:
        """Take gradients, and state that was not here yet; what was is not touched before all is."""
        last = self._due(header, room)
        table = torch.empty(header.nbytes, dtype=torch.uint8)
        receive_exactly(self._connection, memory(table))
        self._fill([room.gradients[: room.ends[last]], *_state(room, header.first, last)], header.digest)
        groups = decode_groups(table.view(torch.float64))
        self._wait_for(header.step, groups, header.updates)
        with self._lock:
            self._held = last

    def _prime(self, header: Header, room: Room) -> None:
        """Take all of the state: no update of it is under way."""
        last = self._due(header, room)
        if header.first or last < room.boxes or self._step >= 0:
            raise TransferError("state came of some boxes alone, or late")
        self._fill(_state(room, 0, last), header.digest)
        with self._lock:
            self._held, self._step = last, header.step

    def _prove(self, header: Header, room: Room) -> None:
        """Compare what is here with what the owner has; what differs is of no use, and all of it must come again."""
        if header.step != self._step or self._pending is not None or self._held < room.boxes:
            raise TransferError(f"digests came after {header.step} steps, and what is here is at {self._step}")
        if header.nbytes > _LONGEST_TABLE:
            raise TransferError("too many digests came")
        expected = bytearray(header.nbytes)
        receive_exactly(self._connection, memoryview(expected))
        wrong = compare(room.replica, bytes(expected))
        with self._lock:
            self._verified = -1 if wrong else header.step
            self._held = 0 if wrong else self._held
        self._proofs.note(self.owner, header.step, wrong)
        self._connection.sendall(ACKNOWLEDGEMENT.pack(~header.step if wrong else header.step))

    def _due(self, header: Header, room: Room) -> int:
        """Return the boxes that are here once this frame is."""
        first, last = header.first, header.last
        if first != self._held or not first <= last <= room.boxes or header.nbytes > _LONGEST_TABLE:
            raise TransferError("a frame has other boxes than are due")
        return last

    def _fill(self, parts: list[torch.Tensor], expected: int) -> None:
        for part in parts:
            receive_exactly(self._connection, memory(part))
        if digest_of(parts) != expected:
            raise TransferError("the digest of what has arrived differs")

    def _wait_for(self, step: int, groups: Groups | None, updates: int = 0) -> None:
        """Note that the state is that after ``step`` completed steps; what is behind it waits for the owner's word."""
        due = self._step if self._pending is None else self._step + 1  # a step without an update is made by itself
        if self._step >= 0 and step != due:
            raise TransferError(f"step {step} came, and step {due} was due")
        with self._lock:
            self._step, self._pending = step, _Pending(step, updates, groups)

    def _fold(self) -> None:
        """Make the step that is pending."""
        assert self._room is not None
        assert self._pending is not None
        step, updates, groups = self._pending
        if groups is not None:
            self._make(self._room.replica.trained[: self._held], updates, groups)
        with self._lock:
            self._step, self._pending = step + 1, None


def _state(room: Room, first: int, last: int) -> list[torch.Tensor]:
    """Return where state of some boxes goes; weights that are not trained come with the last of the others."""
    if first == last:
        return []
    fixed = room.replica.fixed if last == room.boxes else []
    state = [kind[room.ends[first] : room.ends[last]] for kind in room.state]
    return [*state, *(view.view(-1).view(torch.uint8) for _, view in fixed)]
