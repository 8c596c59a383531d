"""One worker's part of moving state: pack, send, receive, unpack and prove, in bounded memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from liver_slurm.errors import TransferError
from liver_slurm.state.digest import digests, signed
from liver_slurm.state.pieces import Piece, TensorInfo, inside
from liver_slurm.state.plan import RankMoves
from liver_slurm.state.schedule import Chunk, schedule
from liver_slurm.stream.transport import Pending, Transport

_WINDOW = 4
"""Chunks in flight; staging is divided among them."""
_DIGEST_BYTES = 8
_ALIGNMENT = 8
_OVERHEAD = _DIGEST_BYTES + _ALIGNMENT
"""Bytes of a message for every part, besides the part."""


@dataclass(frozen=True)
class TransferStats:
    """What a worker moved."""

    seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_local: int = 0
    staging_peak_bytes: int = 0
    digests_checked: int = 0

    def __add__(self, other: TransferStats) -> TransferStats:
        """Of both, one after the other."""
        return TransferStats(
            self.seconds + other.seconds,
            self.bytes_sent + other.bytes_sent,
            self.bytes_received + other.bytes_received,
            self.bytes_local + other.bytes_local,
            max(self.staging_peak_bytes, other.staging_peak_bytes),
            self.digests_checked + other.digests_checked,
        )


class BoxIndex:
    """Finds the storage of any box inside the pieces that a rank holds."""

    def __init__(self, boxes: Iterable[tuple[Piece, torch.Tensor]]) -> None:
        self._boxes: dict[str, list[tuple[Piece, torch.Tensor]]] = {}
        for piece, view in boxes:
            self._boxes.setdefault(piece.tensor, []).append((piece, view))

    def view(self, tensor: str, offset: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
        """A view of the box, in its shape.

        Raises:
            TransferError: no held piece contains it.
        """
        for piece, view in self._boxes.get(tensor, ()):
            place = inside(tuple(offset), tuple(shape), piece)
            if place is not None:
                return view[place]
        raise TransferError(f"{tensor}: the box at {tuple(offset)} of shape {tuple(shape)} is not held here")


class Transfer:
    """Executes this worker's moves of one plan; made in PREPARE, run once in the pause.

    Each chunk carries, behind its boxes, the digest of every box as it lies in the source's storage; the receiver
    compares them with the digests of what then lies in its own storage.
    """

    def __init__(
        self,
        moves: RankMoves,
        tensors: dict[str, TensorInfo],
        source: Iterable[tuple[Piece, torch.Tensor]],
        target: Iterable[tuple[Piece, torch.Tensor]],
        source_peers: Sequence[int],
        target_peers: Sequence[int],
        me: int,
        transport: Transport,
        staging_bytes: int,
        on_received: Callable[[torch.Tensor], None] = lambda box: None,
    ) -> None:
        """
        Args:
            moves: this worker's part of the plan.
            source, target: its pieces in the two worlds, with their storage; empty for a joiner, a leaver.
            source_peers, target_peers: the transport's number of each source and each target rank.
            me: this worker's own number there.
            staging_bytes: memory for messages, in all.
            on_received: called with each box that lies in its place, before its digest is compared.
        """
        self._source, self._target = BoxIndex(source), BoxIndex(target)
        self._copies, self._on_received = moves.copies, on_received
        self._me, self._transport = me, transport
        self._slot_bytes = max(staging_bytes // _WINDOW, 1)
        self._source_peers, self._target_peers = source_peers, target_peers
        ranks = max(len(source_peers), len(target_peers))
        self._chunks = schedule(moves, tensors, self._slot_bytes, ranks, _OVERHEAD)
        self._staging: list[torch.Tensor] = []
        self._free: list[torch.Tensor] = []
        peers = {target_peers[chunk.target_rank] for chunk in self._chunks}
        transport.connect(sorted((peers | {source_peers[chunk.source_rank] for chunk in self._chunks}) - {me}))

    def run(self, counters: Sequence[int] | None) -> tuple[TransferStats, list[int]]:
        """Move everything.

        Args:
            counters: the source world's counters, on every worker that was in it; None on a joiner.

        Returns:
            what was moved, and the counters, which joiners get from the source world's rank 0.

        Raises:
            TransferError: a peer is gone, the transfer was aborted, or a digest differs.
        """
        agreed = self._exchange_counters(counters)
        begun = time.perf_counter()  # a joiner has waited until now for the live world to get to the cutover
        local, checked = self._copy_local()
        sent = received = 0
        window: deque[tuple[Pending, Callable[[], int]]] = deque()
        for chunk in self._chunks:
            if len(window) == _WINDOW:
                checked += _finish(window)
            if self._source_peers[chunk.source_rank] == self._me:
                window.append(self._send(chunk))
                sent += chunk.nbytes
            else:
                window.append(self._receive(chunk))
                received += chunk.nbytes
        while window:
            checked += _finish(window)
        peak = sum(buffer.numel() for buffer in self._staging)
        self._staging, self._free = [], []
        return TransferStats(time.perf_counter() - begun, sent, received, local, peak, checked), agreed

    def abort(self) -> None:
        """Throw a running transfer out with an error, here and at the peers; from any thread."""
        self._transport.abort()

    def close(self) -> None:
        """Give the connections back."""
        self._transport.close()

    def _exchange_counters(self, counters: Sequence[int] | None) -> list[int]:
        root = self._source_peers[0]
        joiners = [peer for peer in self._target_peers if peer not in self._source_peers]
        message = torch.tensor(list(counters or [0]), dtype=torch.int64).to(self._transport.device)
        if self._me == root:
            for work in [self._transport.send(peer, message.view(torch.uint8)) for peer in joiners]:
                work.wait()
        elif self._me in joiners:
            self._transport.receive(root, message.view(torch.uint8)).wait()
        return [int(each) for each in message.tolist()]

    def _copy_local(self) -> tuple[int, int]:
        """Copy what this worker has itself; returns bytes and digests."""
        total = 0

        def copied() -> Iterator[torch.Tensor]:
            """Each box where it lay and where it lies, just after it was copied: it is in the CPU's cache then."""
            nonlocal total
            for move in self._copies:
                source = self._source.view(move.tensor, move.offset, move.shape)
                target = self._target.view(move.tensor, move.offset, move.shape)
                target.copy_(source)
                total += source.numel() * source.element_size()
                yield from (source, target)

        found = digests(copied())
        for move, here, there in zip(self._copies, found[::2], found[1::2], strict=True):
            _compare(move.tensor, here, there)
        return total, len(self._copies)

    def _slot(self) -> torch.Tensor:
        """A staging buffer that is free; at most _WINDOW of them exist."""
        if not self._free:
            self._staging.append(torch.empty(self._slot_bytes, dtype=torch.uint8, device=self._transport.device))
            self._free.append(self._staging[-1])
        return self._free.pop()

    def _send(self, chunk: Chunk) -> tuple[Pending, Callable[[], int]]:
        slot = self._slot()
        views = [self._source.view(part.tensor, part.offset, part.shape) for part in chunk.parts]
        places, length = _layout(views)
        for view, place in zip(views, places, strict=True):
            _at(slot, place, view).copy_(view)
        found = torch.tensor(list(map(signed, digests(views))))
        slot[length - _DIGEST_BYTES * len(views) : length].view(torch.int64).copy_(found)
        pending = self._transport.send(self._target_peers[chunk.target_rank], slot[:length])

        def after() -> int:
            self._free.append(slot)
            return 0

        return pending, after

    def _receive(self, chunk: Chunk) -> tuple[Pending, Callable[[], int]]:
        slot = self._slot()
        views = [self._target.view(part.tensor, part.offset, part.shape) for part in chunk.parts]
        places, length = _layout(views)
        pending = self._transport.receive(self._source_peers[chunk.source_rank], slot[:length])

        def after() -> int:
            for view, place in zip(views, places, strict=True):
                view.copy_(_at(slot, place, view))
                self._on_received(view)
            sent = slot[length - _DIGEST_BYTES * len(views) : length].view(torch.int64).tolist()
            for part, expected, found in zip(chunk.parts, sent, digests(views), strict=True):
                _compare(part.tensor, expected, signed(found))
            self._free.append(slot)
            return len(views)

        return pending, after


def _finish(window: deque[tuple[Pending, Callable[[], int]]]) -> int:
    """Complete the oldest message of the window; returns the digests it compared."""
    pending, after = window.popleft()
    pending.wait()
    return after()


def _layout(views: Sequence[torch.Tensor]) -> tuple[list[int], int]:
    """Where each view begins in a message, aligned for its dtype, and the message's length with its digests."""
    places, at = [], 0
    for view in views:
        at += -at % view.element_size()
        places.append(at)
        at += view.numel() * view.element_size()
    return places, at + -at % _ALIGNMENT + _DIGEST_BYTES * len(views)


def _at(slot: torch.Tensor, place: int, view: torch.Tensor) -> torch.Tensor:
    """The part of a message at ``place`` that has the view's dtype and shape."""
    return slot[place : place + view.numel() * view.element_size()].view(view.dtype).view(view.shape)


def _compare(tensor: str, sent: int, arrived: int) -> None:
    if sent != arrived:
        raise TransferError(f"{tensor}: the digest of what arrived differs from the digest of what was sent")
