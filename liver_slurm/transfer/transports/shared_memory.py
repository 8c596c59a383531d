"""Messages between processes of one machine: through a ring of shared memory that stays in the CPU's cache.

The ring has no name: it is made by ``memfd_create`` and handed over on the pair's AF_UNIX connection, so a process that
is killed at any moment leaves nothing behind. The connection also carries the xxh3 of each piece that lies in the ring,
taken while the piece is in the cache, and a byte for each that was taken out; whoever has nothing to do sleeps in the
kernel until one of them, or the other end's death, wakes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
from collections.abc import Iterator
from typing import Protocol

import torch
import xxhash

from liver_slurm.transfer.checksum import memory
from liver_slurm.transfer.transports.mesh import receive_exactly

PIECE_BYTES = 1 << 20
PIECES = 4
RING_BYTES = PIECES * PIECE_BYTES
_BYTE = b"\1"
_DIGEST_BYTES = 8


class Ring(Protocol):
    """Places for :data:`PIECES` pieces."""

    def at(self, piece: int) -> int:
        """Address of the place of the ``piece``-th piece that goes through the ring."""


class RingSender:
    """The sending end of one ordered pair."""

    def __init__(self, connection: socket.socket) -> None:
        """Makes the ring and hands it over.

        Raises:
            OSError: there is no memory for it, or the peer is gone.
        """
        self._connection = connection
        file = os.memfd_create("liver-slurm")
        try:
            os.posix_fallocate(file, 0, RING_BYTES)  # a machine without memory says so here, not by SIGBUS
            self._ring: Ring = _MappedRing(file)
            socket.send_fds(connection, [_BYTE], [file])
        finally:
            os.close(file)
        self._piece, self._free = 0, PIECES

    def send(self, header: bytes, buffer: torch.Tensor) -> None:
        """Send a header and a contiguous uint8 tensor; returns when the last of it lies in the ring.

        Raises:
            OSError: the peer is gone.
        """
        notice = header
        for address, piece in _pieces(buffer):
            if not self._free:
                self._free = self._taken(PIECES)
            ctypes.memmove(self._ring.at(self._piece), address, len(piece))
            self._connection.sendall(notice + xxhash.xxh3_64_digest(piece))
            notice = b""
            self._piece += 1
            self._free -= 1
        if notice:
            self._connection.sendall(notice)

    def _taken(self, most: int) -> int:
        """Wait until the peer has taken at least one piece out; how many of at most ``most``."""
        heard = len(self._connection.recv(most))
        if not heard:
            raise ConnectionResetError("it hung up")
        return heard


class RingReceiver:
    """The receiving end of one ordered pair."""

    def __init__(self, connection: socket.socket) -> None:
        """Takes the ring over; waits for the peer to send something.

        Raises:
            OSError: the peer is gone.
        """
        self._connection = connection
        heard, files, _, _ = socket.recv_fds(connection, len(_BYTE), 1)
        try:
            if not heard or not files or os.fstat(files[0]).st_size != RING_BYTES:
                raise ConnectionResetError("it hung up" if not heard else "it handed over no ring of the right size")
            self._ring: Ring = _MappedRing(files[0])
        finally:
            for file in files:
                os.close(file)
        self._piece = 0

    def receive(self, buffer: torch.Tensor) -> bool:
        """Fill a contiguous uint8 tensor with what follows a header; False: it was damaged on its way.

        Raises:
            OSError: the peer is gone.
        """
        sent = bytearray(_DIGEST_BYTES)
        for address, piece in _pieces(buffer):
            receive_exactly(self._connection, memoryview(sent))
            self._fetch(address, len(piece))
            if xxhash.xxh3_64_digest(piece) != sent:
                return False
            with contextlib.suppress(OSError):  # a peer that has sent all it had may be gone already
                self._connection.sendall(_BYTE)
            self._piece += 1
        return True

    def _fetch(self, address: int, length: int) -> None:
        ctypes.memmove(address, self._ring.at(self._piece), length)


class _MappedRing:
    """Mapped shared memory; unmapped when the last reference goes."""

    def __init__(self, file: int) -> None:
        self._map = mmap.mmap(file, RING_BYTES)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def at(self, piece: int) -> int:
        """See :class:`Ring`."""
        return self._address + piece % PIECES * PIECE_BYTES


def _pieces(buffer: torch.Tensor) -> Iterator[tuple[int, memoryview]]:
    """Where each piece of a message lies, and its bytes."""
    begin, whole = buffer.data_ptr(), memory(buffer)
    for at in range(0, len(whole), PIECE_BYTES):
        yield begin + at, whole[at : at + PIECE_BYTES]
