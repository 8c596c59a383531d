"""A snapshot: all of one rank's state at one step, as one run of host memory, and on its way over a connection."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, pairwise
from typing import NamedTuple

import torch
import xxhash

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Replica, TrainedBox
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.transfer.checksum import memory
from liver_slurm.transfer.connections import receive_exactly
from liver_slurm.transfer.mirror.frames import ACKNOWLEDGEMENT, HEADER_BYTES, BoxDescription, Header, Kind
from liver_slurm.transfer.mirror.host_room import PAGE

CHUNK = 64 << 20
"""Bytes that are sent, and taken, at once: after each of them a thread waits for a busy training thread to let it go
on, so the tensors of a state, which are smaller, go together."""
_DIGEST = struct.Struct("<Q")
DIGEST_BYTES = _DIGEST.size
"""Of one digest. With a snapshot go the digests of its tensors, and one word that says what kind they are of."""

Take = Callable[[int, torch.Tensor], None]
"""Given where in the snapshot some bytes belong, and the bytes, which are overwritten afterwards."""


class Part(NamedTuple):
    """Where one tensor of a snapshot lies."""

    start: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def parts_of(boxes: Sequence[BoxDescription]) -> list[Part]:
    """Places of the tensors of boxes, in order: master and moments of each trained one, each weight that is not."""
    found: list[Part] = []
    end = 0
    for box in boxes:
        for dtype in (getattr(torch, name) for name in box.dtypes):
            nbytes = box.elements * dtype.itemsize
            found.append(Part(end, nbytes, dtype, box.shape))
            end += -(-nbytes // PAGE) * PAGE
    return found


def room_of(parts: Sequence[Part]) -> int:
    """Return the bytes that a snapshot takes."""
    return -(-(parts[-1].start + parts[-1].nbytes) // PAGE) * PAGE if parts else 0


def replica_in(data: torch.Tensor, boxes: Sequence[BoxDescription]) -> Replica:
    """Return the state that the bytes of a snapshot are. Its boxes have no gradients: no update is made with them."""
    parts = parts_of(boxes)
    views = (data[part.start : part.start + part.nbytes].view(part.dtype).view(part.shape) for part in parts)
    trained: list[TrainedBox] = []
    for box in (box for box in boxes if not box.dtype):
        state = tuple(islice(views, len(box.dtypes)))
        unused = partial(torch.empty_like, state[0])
        trained.append(TrainedBox(box.piece, state, unused, GroupSpec(*box.group), box.moments))
    fixed = [box.piece for box in boxes if box.dtype]
    return Replica(trained, list(zip(fixed, views, strict=True)))


def tensors_of(replica: Replica) -> list[torch.Tensor]:
    """Return the tensors of a state, in the order of a snapshot's parts."""
    return [view for box in replica.trained for view in box.state] + [view for _, view in replica.fixed]


def copy(source: Replica, target: Replica) -> None:
    """Write one state over another of the same boxes; waits until that is done."""
    views = tensors_of(source)
    with torch.no_grad():
        for view, place in zip(views, tensors_of(target), strict=True):
            place.copy_(view, non_blocking=True)
    for device in {view.device for view in [*views, *tensors_of(target)] if view.is_cuda}:
        torch.cuda.current_stream(device).synchronize()


def chunks_of(replica: Replica) -> Iterator[torch.Tensor]:
    """Yield the bytes of a state, wherever its tensors lie, as a snapshot has them."""
    for view in tensors_of(replica):
        flat = view.detach().reshape(-1).view(torch.uint8)
        for begin, end in _chunks(flat.numel()):
            yield flat[begin:end].cpu()
        yield torch.zeros(-flat.numel() % PAGE, dtype=torch.uint8)


def chunks_in(data: torch.Tensor) -> Iterator[torch.Tensor]:
    """Return the bytes of a snapshot that lies in host memory."""
    return (data[begin:end] for begin, end in _chunks(data.numel()))


def send(connection: socket.socket, chunks: Iterable[torch.Tensor], step: int, digests: bytes) -> None:
    """Send a snapshot, and wait until the other end has it.

    Args:
        chunks: its bytes, in host memory.
        step: steps that it has completed.
        digests: of the state that it is of, see :mod:`liver_slurm.transfer.mirror.proof`.

    Raises:
        OSError, TransferError: the other end is gone, or has not got it.
    """
    connection.sendall(Header(Kind.STATE, step, nbytes=len(digests)).encode())
    seen = xxhash.xxh3_64()
    for chunk in chunks:
        seen.update(memory(chunk))
        connection.sendall(memory(chunk))
    seen.update(digests)
    connection.sendall(digests + _DIGEST.pack(seen.intdigest()))
    answer = bytearray(ACKNOWLEDGEMENT.size)
    receive_exactly(connection, memoryview(answer))
    if ACKNOWLEDGEMENT.unpack(answer) != (step,):
        raise TransferError("who was sent a snapshot acknowledged another step")


def receive(
    connection: socket.socket,
    header: Header,
    boxes: Sequence[BoxDescription],
    take: Take,
    place: torch.Tensor | None = None,
) -> bytes:
    """Take a snapshot whose header has come; what is taken counts only if this returns.

    Args:
        boxes: that it is of.
        take: given what has come, at once.
        place: where it is written; None: to memory of its own, for ``take`` to make something of it.

    Returns:
        the digests of the state that it is of, as they were given to :func:`send`.

    Raises:
        OSError, TransferError: the other end is gone, or what came is not what it sent.
    """
    parts = parts_of(boxes)
    if header.nbytes != DIGEST_BYTES * (len(parts) + 1):
        raise TransferError("a snapshot came with the digests of other boxes")
    nbytes, digests, seen = room_of(parts), bytearray(header.nbytes), xxhash.xxh3_64()
    staging = torch.empty(min(CHUNK, nbytes) if place is None else 0, dtype=torch.uint8)
    for begin, end in _chunks(nbytes):
        piece = place[begin:end] if place is not None else staging[: end - begin]
        receive_exactly(connection, memory(piece))
        seen.update(memory(piece))
        take(begin, piece)
    receive_exactly(connection, memoryview(digests))
    seen.update(digests)
    data = bytearray(_DIGEST.size)
    receive_exactly(connection, memoryview(data))
    if _DIGEST.unpack(data) != (seen.intdigest(),):
        raise TransferError("the digest of what has arrived differs")
    return bytes(digests)


def fold_received(connection: socket.socket, boxes: Sequence[BoxDescription], step: int, data: torch.Tensor) -> None:
    """Take another rank's state after ``step`` completed steps out of a parity.

    Raises:
        OSError, TransferError: the other end is gone, or what came is not what it sent.
    """
    header = receive_header(connection)
    if (header.kind, header.step) != (Kind.STATE, step):
        raise TransferError(f"a peer sent something else than its state after {step} steps")

    def fold(start: int, piece: torch.Tensor) -> None:
        data[start : start + piece.numel()].bitwise_xor_(piece)

    receive(connection, header, boxes, fold)
    connection.sendall(ACKNOWLEDGEMENT.pack(step))


def receive_header(connection: socket.socket) -> Header:
    """Wait for what comes next.

    Raises:
        OSError, TransferError: nothing does, or what is no header.
    """
    return Header.decode(receive_bytes(connection, HEADER_BYTES, HEADER_BYTES))


def receive_bytes(connection: socket.socket, nbytes: int, most: int) -> bytearray:
    """Take what comes next, of so many bytes.

    Raises:
        OSError: the other end is gone.
        TransferError: these are more than the most that there can be.
    """
    if nbytes > most:
        raise TransferError(f"{nbytes} bytes are to come, where there can be at most {most}")
    data = bytearray(nbytes)
    receive_exactly(connection, memoryview(data))
    return data


def _chunks(nbytes: int) -> list[tuple[int, int]]:
    return list(pairwise([*range(0, nbytes, CHUNK), nbytes])) if nbytes else []
