"""The host's transport: shared memory within a machine, TCP between machines, chosen for each pair of peers.

Each message is preceded by a header: its number, its length and the xxh3 of its content, which in a ring of pieces
follows with each piece. The first two find out ends that do not follow the same plan, the third what a link, a driver
or an end that reads a piece too early does to a message. The digests of
:mod:`liver_slurm.transfer.blocking_transfer` and :mod:`liver_slurm.transfer.live_transfer` prove more, each box from
the source's storage to the target's, whatever carried it.

Measured between two processes that have cores for themselves, 16 MiB of staging, GB/s:

- TCP 3.3, a raw TCP stream 3.4, gloo, which has no checksum, 3.4. gloo is not chosen by itself: it is no faster, and
  connects each peer to every other one before the first byte moves.
- Shared memory 5.8, without the checksum 10.0, memcpy 9.3 to 10.4. A checksum of whole messages, which have left the
  cache by then, costs more.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from queue import SimpleQueue

import torch
import xxhash

from liver_slurm.base.errors import LiverError, TransferError
from liver_slurm.transfer.checksum import memory
from liver_slurm.transfer.transports import tcp
from liver_slurm.transfer.transports.base import Pending
from liver_slurm.transfer.transports.mesh import Connections, hang_up, receive_exactly
from liver_slurm.transfer.transports.shared_memory import RingReceiver, RingSender
from liver_slurm.transfer.transports.ucx import UcxReceiver, UcxSender

_HEADER = struct.Struct("<QQQ")
"""Number, length, checksum; the last is 0 where the content goes through a ring."""


class _Sender:
    """What goes to one peer, in order."""

    def __init__(self, connections: Connections, peer: int, ucx: bool) -> None:
        self._connection = connections.outgoing(peer)
        self._ring: RingSender | None = None
        if ucx:
            self._ring = UcxSender(self._connection)
        elif self._connection.family == socket.AF_UNIX:
            self._ring = RingSender(self._connection)
        self._number = 0

    def carry(self, buffer: torch.Tensor) -> None:
        checksum = 0 if self._ring is not None else _checksum(buffer)
        header = _HEADER.pack(self._number, buffer.numel(), checksum)
        self._number += 1
        if self._ring is not None:
            self._ring.send(header, buffer)
        else:
            tcp.send(self._connection, header, buffer)


class _Receiver:
    """What comes from one peer, in order."""

    def __init__(self, connections: Connections, peer: int, ucx: bool) -> None:
        self._peer = peer
        self._connection = connections.incoming(peer)
        self._ring: RingReceiver | None = None
        if ucx:
            self._ring = UcxReceiver(self._connection)
        elif self._connection.family == socket.AF_UNIX:
            self._ring = RingReceiver(self._connection)
        self._number = 0
        self._header = bytearray(_HEADER.size)

    def carry(self, buffer: torch.Tensor) -> None:
        receive_exactly(self._connection, memoryview(self._header))
        *heard, checksum = _HEADER.unpack(self._header)
        expected = [self._number, buffer.numel()]
        if heard != expected:
            hang_up(self._connection)
            raise TransferError(
                f"peer {self._peer} sent message {heard[0]} of {heard[1]} bytes where message {expected[0]} of "
                f"{expected[1]} bytes was due: the two follow different plans"
            )
        self._number += 1
        if self._ring is not None:
            intact = self._ring.receive(buffer)
        else:
            tcp.receive(self._connection, buffer)
            intact = _checksum(buffer) == checksum
        if not intact:
            hang_up(self._connection)
            raise TransferError(f"message {heard[0]} of peer {self._peer} was damaged on its way")


def _checksum(buffer: torch.Tensor) -> int:
    # In one call: a busy thread gives the interpreter back more slowly than a piece is hashed.
    return xxhash.xxh3_64_intdigest(memory(buffer))


class _Messages:
    """Messages under way; a bare lock, because futures cost more than a small message's copy."""

    def __init__(self, buffers: Sequence[torch.Tensor], timeout: timedelta) -> None:
        self.buffers, self._timeout = buffers, timeout
        self._error: LiverError | None = None
        self._under_way = threading.Lock()
        self._under_way.acquire()

    def done(self, error: LiverError | None) -> None:
        self._error = error
        self._under_way.release()

    def wait(self) -> None:
        if not self._under_way.acquire(timeout=self._timeout.total_seconds()):
            raise TransferError(f"a message did not go through within {self._timeout}")
        self._under_way.release()
        if self._error is not None:
            raise self._error


class _Lane:
    """One direction of one pair: its messages are carried by a thread of their own, one after the other.

    Or by the caller's own, see :meth:`carry`: two changes of thread cost more than a small message's copy, too.
    """

    def __init__(self, make: Callable[[], _Sender | _Receiver], peer: int, name: str) -> None:
        self._make, self._peer = make, peer
        self._end: _Sender | _Receiver | None = None
        self._queue: SimpleQueue[_Messages | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def post(self, messages: _Messages) -> None:
        self._queue.put(messages)

    def close(self) -> None:
        """Waits for its thread, which ends soon once the connections are given up."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (messages := self._queue.get()) is not None:
            messages.done(self.carry(messages.buffers))

    def carry(self, buffers: Sequence[torch.Tensor]) -> LiverError | None:
        """Carry messages, while no others are under way; returns what went wrong."""
        try:
            if self._end is None:
                self._end = self._make()
            for buffer in buffers:
                self._end.carry(buffer)
        except LiverError as error:
            return error
        except OSError as error:
            return _failed(f"peer {self._peer} went away while state was streamed: {error}", error)
        except Exception as error:  # noqa: BLE001 - the thread's edge: whoever waits for the message raises it
            return _failed(f"a message of peer {self._peer} could not be carried: {error!r}", error)
        return None


def _failed(what: str, cause: Exception) -> TransferError:
    error = TransferError(what)
    error.__cause__ = cause
    return error


class HostTransport:
    """See :class:`~liver_slurm.transfer.transports.base.Transport`; buffers lie in host memory."""

    def __init__(self, connections: Connections, timeout: timedelta, ucx: bool = False) -> None:
        """
        Args:
            connections: to the peers; closed with the transport.
            timeout: how long a wait for one message may take.
            ucx: whether the content goes through UCX, and connections only say that it is there.
        """
        self.device = torch.device("cpu")
        self._connections, self._timeout, self._ucx = connections, timeout, ucx
        self._lock = threading.Lock()
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._given_up = False

    def connect(self, peers: Iterable[int]) -> None:
        """See :class:`~liver_slurm.transfer.transports.base.Transport`."""
        for peer in peers:
            self._connections.outgoing(peer)

    def send(self, peer: int, *buffers: torch.Tensor) -> Pending:
        """See :class:`~liver_slurm.transfer.transports.base.Transport`."""
        return self._post("send", peer, buffers)

    def receive(self, peer: int, buffer: torch.Tensor) -> Pending:
        """See :class:`~liver_slurm.transfer.transports.base.Transport`."""
        return self._post("receive", peer, [buffer])

    def receive_now(self, peer: int, buffer: torch.Tensor) -> None:
        """See :class:`~liver_slurm.transfer.transports.base.Transport`."""
        with self._lock:
            lane = self._lane("receive", peer)
        error = lane.carry([buffer])
        if error is not None:
            raise error

    def abort(self) -> None:
        """See :class:`~liver_slurm.transfer.transports.base.Transport`."""
        with self._lock:
            self._given_up = True
        self._connections.give_up()

    def close(self) -> None:
        """See :class:`~liver_slurm.transfer.transports.base.Transport`."""
        self.abort()
        for lane in self._lanes.values():
            lane.close()
        self._connections.close()

    def _post(self, direction: str, peer: int, buffers: Sequence[torch.Tensor]) -> Pending:
        with self._lock:
            messages = _Messages(buffers, self._timeout)
            self._lane(direction, peer).post(messages)
            return messages

    def _lane(self, direction: str, peer: int) -> _Lane:
        """The lane, made if need be; the caller has the lock."""
        if self._given_up:
            raise TransferError("the transfer was given up")
        lane = self._lanes.get((direction, peer))
        if lane is None:
            make = _Sender if direction == "send" else _Receiver
            lane = _Lane(lambda: make(self._connections, peer, self._ucx), peer, f"{direction}-{peer}")
            self._lanes[direction, peer] = lane
        return lane
