"""The keeper's part of a mirror that is refreshed: it folds the snapshots of a group of owners into one.

Folding is exclusive or, byte by byte: the parity of the group. Of one owner that is its snapshot itself; of several,
one that dies is the parity folded with the snapshots of all others. There is room for two steps, so that the last whole
one stays until the next one is whole everywhere.

A single owner of the same machine may have its snapshots in memory that is mapped here. They are not sent, then, but
read where they lie when they are needed: see :mod:`liver_slurm.transfer.mirror.shared_place`.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence

import msgspec
import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.base.host_memory import available_memory
from liver_slurm.engine.replica import Replica
from liver_slurm.transfer.connections import hang_up
from liver_slurm.transfer.mirror.frames import (
    ACKNOWLEDGEMENT,
    LONGEST_DESCRIPTION,
    BoxDescription,
    Header,
    Kind,
    decode_description,
)
from liver_slurm.transfer.mirror.host_room import Lease, Places
from liver_slurm.transfer.mirror.shared_place import SharedPlace
from liver_slurm.transfer.mirror.snapshot import parts_of, receive, receive_bytes, receive_header, replica_in, room_of

log = logging.getLogger(__name__)


class _Folded:
    """The parity of one step."""

    def __init__(self) -> None:
        self.data = torch.empty(0, dtype=torch.uint8)
        self.begin(-1)

    def begin(self, step: int) -> None:
        """Take the snapshots of another step."""
        self.step = step
        self.begun, self.whole = set[str](), set[str]()
        """Owners whose snapshot has begun to come, and has come."""
        self.digests: dict[str, bytes] = {}
        """What came with each of them."""

    def grow(self, room: torch.Tensor) -> None:
        """Have more room, whose content is undefined."""
        kept = self.data.numel()
        room[:kept] = self.data
        room[kept:].zero_()
        self.data = room


class SnapshotKeeper:
    """A thread for each owner reads; :meth:`steps` may be asked by any."""

    def __init__(self, connections: Mapping[str, socket.socket], lease: Lease) -> None:
        """
        Args:
            connections: from the owners of one group, by name.
            lease: of host memory; who made it ends it.
        """
        self._connections, self._lease = connections, lease
        self._boxes: dict[str, list[BoxDescription]] = {}
        self._now, self._before = _Folded(), _Folded()
        self._shared: list[SharedPlace] = []
        """Where the only owner puts its snapshots by, if that is mapped here."""
        self._dropped = set[int]()
        """Steps of those that are not what they are to be."""
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(name,), name="mirror", daemon=True) for name in connections
        ]

    @property
    def owners(self) -> tuple[str, ...]:
        """Names of the group."""
        return tuple(self._connections)

    @property
    def nbytes(self) -> int:
        """Host memory that it takes; each heartbeat says it, so it must not wait for what is being folded."""
        return sum(each.data.numel() for each in (self._now, self._before))

    def start(self) -> None:
        """Read from now on."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until nothing is read any more; the connections must be given up."""
        for thread in self._threads:
            thread.join()

    def steps(self) -> tuple[int, ...]:
        """Return the completed steps that the state of any one owner can be had at, given that of all others."""
        with self._lock:
            if self._shared:
                return tuple(sorted({each.step for each in self._shared} - self._dropped - {-1}))
            return tuple(each.step for each in (self._before, self._now) if len(each.whole) == len(self._connections))

    def state_of(self, owner: str, step: int, fold_others: Callable[[torch.Tensor], None] | None = None) -> Replica:
        """Return the state of an owner after ``step`` completed steps; call it once the connections are given up.

        Args:
            fold_others: folds the snapshots of all others into the given bytes; needed only where there are some.

        Raises:
            TransferError: it cannot be had.
        """
        self.join()
        if step not in self.steps() or owner not in self._boxes:
            raise TransferError(f"of {owner} the state after {step} steps is not kept here, but after {self.steps()}")
        with self._lock:
            data = next(each.data for each in self._kept() if each.step == step)
        if fold_others is not None:
            data = data.clone()  # the attempt that it is for may fail: the next one needs the parity again
            fold_others(data)
        return replica_in(data, self._boxes[owner])

    def digests_of(self, owner: str, step: int) -> bytes:
        """Return the digests of an owner's live state after ``step`` completed steps, of which :meth:`state_of` is
        there."""
        with self._lock:
            for each in self._shared:
                if each.step == step:
                    return each.digests
            return next(each.digests[owner] for each in (self._before, self._now) if each.step == step)

    def drop(self, step: int) -> None:
        """Keep the state after ``step`` completed steps no more: it is not what it is to be."""
        with self._lock:
            self._dropped.add(step)
            for each in (self._before, self._now):
                if each.step == step:
                    each.whole.clear()

    def boxes_of(self, owner: str) -> list[BoxDescription]:
        """Return what an owner has described."""
        return self._boxes[owner]

    def _kept(self) -> Sequence[_Folded | SharedPlace]:
        return self._shared or (self._now, self._before)

    # ---- the threads

    def _run(self, owner: str) -> None:
        connection = self._connections[owner]
        try:
            while True:
                self._take(owner, connection, receive_header(connection))
        except OSError as error:
            log.info("the mirror of %s is not refreshed any more: %s", owner, error)
        except TransferError as error:
            news = logging.INFO if self._lease.given_up else logging.WARNING
            log.log(news, "the mirror of %s is not refreshed any more: %s", owner, error)
        # Without one of them the parity is of no use to the others: they are not to wait for answers.
        for each in self._connections.values():
            hang_up(each)

    def _take(self, owner: str, connection: socket.socket, header: Header) -> None:
        if header.kind in (Kind.DESCRIPTION, Kind.SHARED) and owner in self._boxes:
            raise TransferError("a description came twice")
        if header.kind is Kind.DESCRIPTION:
            self._describe(owner, receive_bytes(connection, header.nbytes, LONGEST_DESCRIPTION))
            return
        if header.kind is Kind.SHARED:
            self._map(owner, connection, header)
            return
        if header.kind is not Kind.STATE or owner not in self._boxes:
            raise TransferError("an owner sent what is not due")
        folded = self._round(owner, header.step)

        def fold(start: int, piece: torch.Tensor) -> None:
            with self._lock:
                folded.data[start : start + piece.numel()].bitwise_xor_(piece)

        boxes = self._boxes[owner]
        if len(self._connections) == 1:  # nothing to fold it with: it is written where it belongs
            digests = receive(connection, header, boxes, lambda *_: None, folded.data[: room_of(parts_of(boxes))])
        else:
            digests = receive(connection, header, boxes, fold)
        with self._lock:
            folded.whole.add(owner)
            folded.digests[owner] = digests
        connection.sendall(ACKNOWLEDGEMENT.pack(header.step))

    def _map(self, owner: str, connection: socket.socket, header: Header) -> None:
        """Map where the snapshots of a single owner will lie, if that can be done here."""
        description = receive_bytes(connection, header.nbytes, LONGEST_DESCRIPTION)
        where = receive_bytes(connection, header.last, LONGEST_DESCRIPTION)
        boxes = decode_description(description)
        try:
            if len(self._connections) > 1:
                raise TransferError("it is one of several owners")
            rooms = self._lease.map(msgspec.msgpack.decode(where, type=Places))
            shared = [SharedPlace(boxes, room) for room in rooms]
        except (OSError, RuntimeError, TransferError, msgspec.DecodeError) as error:
            log.info("the snapshots of %s are sent, as they cannot be mapped: %s", owner, error)
            shared = []
        if shared:
            with self._lock:
                self._shared, self._boxes[owner] = shared, boxes
        connection.sendall(ACKNOWLEDGEMENT.pack(int(bool(shared))))

    def _describe(self, owner: str, data: bytearray) -> None:
        boxes = decode_description(data)
        nbytes = room_of(parts_of(boxes))
        more = 2 * max(0, nbytes - self._now.data.numel())
        if more:
            left = self._lease.await_turn()
            spare = available_memory() + left
            if more > max(left, spare // 2):
                raise TransferError(f"it takes {more} bytes more, and this machine has {spare} to spare")
        try:
            rooms = [self._lease.take(nbytes) for _ in range(2)] if more else []
        except RuntimeError as error:  # of the card
            raise TransferError(f"there is no room for it: {error}") from error
        with self._lock:
            for each, room in zip((self._now, self._before), rooms, strict=False):
                if room.numel() > each.data.numel():
                    each.grow(room)
            self._boxes[owner] = boxes

    def _round(self, owner: str, step: int) -> _Folded:
        """Return what the snapshot of a step is folded into."""
        with self._lock:
            if step > self._now.step:
                if self._now.begun != self._now.whole or len(self._now.whole) not in (0, len(self._connections)):
                    raise TransferError(
                        f"a snapshot of step {step} came before that of step {self._now.step} was whole"
                    )
                self._now, self._before = self._before, self._now
                self._now.begin(step)
                if len(self._connections) > 1:  # a copy is written over what was there
                    self._now.data.zero_()
            if step != self._now.step or owner in self._now.begun:
                raise TransferError(f"a snapshot of step {step} came, which is not due")
            self._now.begun.add(owner)
            return self._now
