"""One worker's part of moving state: pack, send, receive, unpack and prove, in bounded memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from liver_slurm.errors import TransferError
from liver_slurm.state.digest import DIGEST_BYTES, digest
from liver_slurm.state.pieces import Piece, TensorInfo
from liver_slurm.state.plan import RankMoves
from liver_slurm.state.schedule import Chunk, chunks
from liver_slurm.stream.transport import Pending, Transport

_WINDOW = 4
"""Chunks in flight; staging is divided among them."""
_COUNTERS = 2


@dataclass(frozen=True)
class TransferStats:
    """What a worker moved."""

    seconds: float
    bytes_sent: int
    bytes_received: int
    bytes_local: int
    staging_peak_bytes: int
    digests_checked: int


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
            start = [a - b for a, b in zip(offset, piece.offset, strict=True)]
            if all(a >= 0 and a + n <= m for a, n, m in zip(start, shape, piece.shape, strict=True)):
                return view[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
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
    ) -> None:
        """
        Args:
            moves: this worker's part of the plan.
            source, target: its pieces in the two worlds, with their storage; empty for a joiner, a leaver.
            source_peers, target_peers: the transport's number of each source and each target rank.
            me: this worker's own number there.
            staging_bytes: memory for messages, in all.
        """
        self._source, self._target = BoxIndex(source), BoxIndex(target)
        self._copies = moves.copies
        self._me, self._transport = me, transport
        self._slot_bytes = max(staging_bytes // _WINDOW, 1)
        self._source_peers, self._target_peers = source_peers, target_peers
        self._chunks = chunks([*moves.sends, *moves.receives], tensors, self._slot_bytes)
        self._staging: list[torch.Tensor] = []
        self._free: list[torch.Tensor] = []
        self.counters: list[int] | None = None

    def run(self, counters: Sequence[int] | None) -> TransferStats:
        """Move everything.

        Args:
            counters: the source world's counters, on every worker that was in it; joiners get them from its rank 0 and
                find them in :attr:`counters` afterwards.

        Raises:
            TransferError: a peer is gone, the transfer was aborted, or a digest differs.
        """
        begun = time.perf_counter()
        self._exchange_counters(counters)
        sent = received = checked = 0
        local = 0
        for move in self._copies:
            source = self._source.view(move.tensor, move.offset, move.shape)
            target = self._target.view(move.tensor, move.offset, move.shape)
            target.copy_(source)
            self._compare(move.tensor, digest(source), digest(target))
            local += source.numel() * source.element_size()
            checked += 1
        window: deque[tuple[Pending, Callable[[], int]]] = deque()
        for chunk in self._chunks:
            if len(window) == _WINDOW:
                checked += self._finish(window)
            if self._source_peers[chunk.source] == self._me:
                window.append(self._send(chunk))
                sent += chunk.nbytes
            else:
                window.append(self._receive(chunk))
                received += chunk.nbytes
        while window:
            checked += self._finish(window)
        peak = sum(buffer.numel() for buffer in self._staging)
        self._staging, self._free = [], []
        return TransferStats(time.perf_counter() - begun, sent, received, local, peak, checked)

    def abort(self) -> None:
        """Throw a running transfer out with an error, here and at the peers; from any thread."""
        self._transport.abort()

    def close(self) -> None:
        """Give the connections back."""
        self._transport.close()

    def _exchange_counters(self, counters: Sequence[int] | None) -> None:
        root = self._source_peers[0]
        message = torch.tensor(list(counters or [0] * _COUNTERS), dtype=torch.int64).to(self._transport.device)
        joiners = [peer for peer in self._target_peers if peer not in self._source_peers]
        if self._me == root:
            for work in [self._transport.send(peer, message.view(torch.uint8)) for peer in joiners]:
                work.wait()
        elif self._me in joiners:
            self._transport.receive(root, message.view(torch.uint8)).wait()
        self.counters = message.tolist()

    def _slot(self, nbytes: int) -> torch.Tensor:
        """A staging buffer; at most _WINDOW exist, each as large as the largest message or the limit's share."""
        if not self._free:
            self._staging.append(torch.empty(self._slot_bytes, dtype=torch.uint8, device=self._transport.device))
            self._free.append(self._staging[-1])
        return self._free.pop()

    def _finish(self, window: deque[tuple[Pending, Callable[[], int]]]) -> int:
        pending, after = window.popleft()
        pending.wait()
        return after()

    def _send(self, chunk: Chunk) -> tuple[Pending, Callable[[], int]]:
        slot = self._slot(chunk.nbytes)
        views = [self._source.view(part.tensor, part.offset, part.shape) for part in chunk.parts]
        end = _pack(views, slot)
        end = _pack([digest(view) for view in views], slot, end)
        pending = self._transport.send(self._target_peers[chunk.target], slot[:end])

        def after() -> int:
            self._free.append(slot)
            return 0

        return pending, after

    def _receive(self, chunk: Chunk) -> tuple[Pending, Callable[[], int]]:
        slot = self._slot(chunk.nbytes)
        length = chunk.nbytes
        pending = self._transport.receive(self._source_peers[chunk.source], slot[:length])

        def after() -> int:
            at = 0
            views = []
            for part in chunk.parts:
                view = self._target.view(part.tensor, part.offset, part.shape)
                size = view.numel() * view.element_size()
                view.copy_(slot[at : at + size].view(view.dtype).view(view.shape))
                views.append(view)
                at += size
            for part, view in zip(chunk.parts, views, strict=True):
                self._compare(part.tensor, slot[at : at + DIGEST_BYTES], digest(view))
                at += DIGEST_BYTES
            self._free.append(slot)
            return len(views)

        return pending, after

    @staticmethod
    def _compare(tensor: str, sent: torch.Tensor, arrived: torch.Tensor) -> None:
        if not torch.equal(sent, arrived):
            raise TransferError(f"{tensor}: the digest of what arrived differs from the digest of what was sent")


def _pack(views: Iterable[torch.Tensor], slot: torch.Tensor, at: int = 0) -> int:
    """Copy tensors behind each other into a byte buffer, from ``at`` on; returns where they end."""
    for view in views:
        size = view.numel() * view.element_size()
        slot[at : at + size].view(view.dtype).view(view.shape).copy_(view)
        at += size
    return at
