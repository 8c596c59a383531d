"""One worker's part of moving state: pack, send, receive, unpack and prove, in bounded memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.reshard.chunks import Chunk, schedule
from liver_slurm.reshard.plan import RankMoves
from liver_slurm.reshard.tensors import Move, Piece, TensorInfo, inside
from liver_slurm.transfer import threads
from liver_slurm.transfer.checksum import digests, signed
from liver_slurm.transfer.crew import Crew
from liver_slurm.transfer.one_sided.pull import Pull
from liver_slurm.transfer.packing import ALIGNMENT, Packed, lay_out
from liver_slurm.transfer.route import Route
from liver_slurm.transfer.shared_box import SharedBox
from liver_slurm.transfer.transports.base import Pending

_InFlight = tuple[list[Pending], Callable[[], None]]
"""A chunk's messages, and what is to be done when they have gone through."""
_Proof = list[tuple[Chunk, Callable[[], list[int]]]]
"""Of one pair of ranks: each chunk, and what waits for the digests of its boxes."""

_SLOTS = 4
"""What staging is divided into; a chunk needs one, or none."""
_WINDOW = 16
"""Chunks in flight, so that those of several peers are."""
_DIGEST_BYTES = 8


@dataclass(frozen=True)
class BlockingTransferStats:
    """What a worker moved."""

    seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_local: int = 0
    staging_peak_bytes: int = 0
    digests_checked: int = 0

    def __add__(self, other: BlockingTransferStats) -> BlockingTransferStats:
        """Of both, one after the other."""
        return BlockingTransferStats(
            self.seconds + other.seconds,
            self.bytes_sent + other.bytes_sent,
            self.bytes_received + other.bytes_received,
            self.bytes_local + other.bytes_local,
            max(self.staging_peak_bytes, other.staging_peak_bytes),
            self.digests_checked + other.digests_checked,
        )


class _Copy(NamedTuple):
    """A box that moves within a worker."""

    tensor: str
    source: torch.Tensor
    target: torch.Tensor


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

    def shared(self, piece: Piece) -> SharedBox:
        """A box for a one-sided transfer.

        Raises:
            TransferError: no held piece contains it.
        """
        return SharedBox((self.view(*piece),))


class BlockingTransfer:
    """Executes this worker's moves of one plan; made in PREPARE, run once in the pause.

    Behind all boxes of a pair of ranks follow their digests, as they lie in the source's storage; the receiver compares
    them with the digests of what then lies in its own storage.
    """

    def __init__(
        self,
        moves: RankMoves,
        tensors: dict[str, TensorInfo],
        source: Iterable[tuple[Piece, torch.Tensor]],
        target: Iterable[tuple[Piece, torch.Tensor]],
        route: Route,
        pull: Pull | None = None,
    ) -> None:
        """
        Args:
            moves: this worker's part of the plan, without what ``pull`` reads.
            source, target: its pieces in the two worlds, with their storage; empty for a joiner, a leaver.
            pull: what is read from peers' memory; None: nothing is.
        """
        self._source, self._target = BoxIndex(source), BoxIndex(target)
        self._pull, self._crew = pull, Crew(self._give_up)
        self._copies, self._on_received = self._moved(moves.copies), route.on_received
        self._me, self._transport = me, transport = route.me, route.transport
        self._slot_bytes = max(route.staging_bytes // _SLOTS, _DIGEST_BYTES)
        self._source_peers, self._target_peers = source_peers, target_peers = route.source_peers, route.target_peers
        ranks = max(len(source_peers), len(target_peers))
        self._chunks = schedule(moves, tensors, self._slot_bytes, ranks, ALIGNMENT)
        self._staging: list[torch.Tensor] = []
        self._free: list[torch.Tensor] = []
        self._window: deque[_InFlight] = deque()
        peers = {target_peers[chunk.target_rank] for chunk in self._chunks}
        transport.connect(sorted((peers | {source_peers[chunk.source_rank] for chunk in self._chunks}) - {me}))

    def run(self, counters: Sequence[int] | None) -> tuple[BlockingTransferStats, list[int]]:
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
        if self._pull is not None:
            self._crew.awaited()
            self._crew.start(self._pull.bodies)
            self._pull.finish(agreed[0])
        if self._transport.device.type == "cuda":  # one stream, so one thread
            moved = _copy(iter(self._copies)) + self._move(None)
        else:
            with threads.idle() as pool:
                copying = threads.spread(pool, _copy, self._copies)
                moved = sum((copied.result() for copied in copying), self._move(pool))
        peak = sum(buffer.numel() for buffer in self._staging)
        self._staging, self._free = [], []
        moved = replace(moved, staging_peak_bytes=peak)
        if self._pull is not None:
            self._crew.wait(lambda: self._crew.idle)
            pulled = self._pull.stats
            moved += BlockingTransferStats(
                bytes_sent=pulled.bytes_sent,
                bytes_received=pulled.bytes_received,
                staging_peak_bytes=pulled.staging_peak_bytes,
                digests_checked=pulled.digests_checked,
            )
        return replace(moved, seconds=time.perf_counter() - begun), agreed

    def abort(self) -> None:
        """Throw a running transfer out with an error, here and at the peers; from any thread."""
        self._crew.fail(TransferError("the transfer was given up"))
        self._give_up()

    def close(self) -> None:
        """Give the connections back."""
        if self._pull is not None:
            self.abort()
            self._crew.join()
            self._pull.close()
        self._transport.close()

    def _give_up(self) -> None:
        if self._pull is not None:
            self._pull.cancel()
        self._transport.abort()

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

    def _moved(self, copies: Sequence[Move]) -> list[_Copy]:
        """What this worker has to copy, the largest first: nothing that both worlds keep in one storage."""
        indices = (self._source, self._target)
        views = [
            _Copy(move.tensor, *(index.view(move.tensor, move.offset, move.shape) for index in indices))
            for move in copies
        ]
        moved = [copy for copy in views if copy.source.data_ptr() != copy.target.data_ptr()]
        return sorted(moved, key=lambda copy: -copy.source.nbytes)

    def _move(self, pool: ThreadPoolExecutor | None) -> BlockingTransferStats:
        """Send and receive, several chunks at a time, and prove; ``pool`` has cores to spare."""
        sent = received = 0
        proofs: dict[tuple[int, int], _Proof] = {}
        for chunk in self._chunks:
            if len(self._window) == (_WINDOW if pool is not None else _SLOTS):
                self._finish()
            proof = proofs.setdefault((chunk.source_rank, chunk.target_rank), [])
            if self._source_peers[chunk.source_rank] == self._me:
                self._window.append(self._send(chunk, proof, pool))
                sent += chunk.nbytes
            else:
                self._window.append(self._receive(chunk, proof))
                received += chunk.nbytes
        while self._window:
            self._finish()
        # In the order of the chunks, as all workers do: no two can wait for each other.
        checked = sum(self._prove(*pair, proof) for pair, proof in proofs.items())
        return BlockingTransferStats(bytes_sent=sent, bytes_received=received, digests_checked=checked)

    def _finish(self) -> None:
        """Complete the oldest chunk of the window."""
        pending, after = self._window.popleft()
        for message in pending:
            message.wait()
        after()

    def _slot(self) -> torch.Tensor:
        """A staging buffer that is free; completes the oldest chunks for it where need be."""
        while not self._free and len(self._staging) == _SLOTS:
            self._finish()
        if not self._free:
            self._staging.append(torch.empty(self._slot_bytes, dtype=torch.uint8, device=self._transport.device))
            self._free.append(self._staging[-1])
        return self._free.pop()

    def _give(self, slot: torch.Tensor | None) -> None:
        if slot is not None:
            self._free.append(slot)

    def _send(self, chunk: Chunk, proof: _Proof, pool: ThreadPoolExecutor | None) -> _InFlight:
        packed, views = self._lay_out(chunk, self._source)
        packed.pack()
        peer = self._target_peers[chunk.target_rank]
        pending = [self._transport.send(peer, message) for message in packed.messages]
        proof.append((chunk, pool.submit(digests, views).result if pool is not None else _known(digests(views))))
        return pending, partial(self._give, packed.slot)

    def _receive(self, chunk: Chunk, proof: _Proof) -> _InFlight:
        packed, views = self._lay_out(chunk, self._target)
        peer = self._source_peers[chunk.source_rank]
        pending = [self._transport.receive(peer, message) for message in packed.messages]

        def after() -> None:
            packed.unpack()
            for view in views:
                self._on_received(view)
            proof.append((chunk, _known(digests(views))))  # at once: what came in last is in the CPU's cache
            self._give(packed.slot)

        return pending, after

    def _lay_out(self, chunk: Chunk, boxes: BoxIndex) -> tuple[Packed, list[torch.Tensor]]:
        views = [boxes.view(part.tensor, part.offset, part.shape) for part in chunk.parts]
        return lay_out(views, self._transport.device, self._slot), views

    def _prove(self, source: int, target: int, proof: _Proof) -> int:
        """Send the digests of what one rank had for another, or compare them; returns how many were compared."""
        tensors = [part.tensor for chunk, _ in proof for part in chunk.parts]
        found = [signed(digest) for _, words in proof for digest in words()]
        sends = self._source_peers[source] == self._me
        slot = self._slot()
        most = slot.numel() // _DIGEST_BYTES
        for at in range(0, len(found), most):
            mine = found[at : at + most]
            message = slot[: len(mine) * _DIGEST_BYTES]
            if sends:
                message.view(torch.int64).copy_(torch.tensor(mine))
                self._transport.send(self._target_peers[target], message).wait()
            else:
                self._transport.receive(self._source_peers[source], message).wait()
                theirs = message.view(torch.int64).tolist()
                for tensor, expected, arrived in zip(tensors[at : at + most], theirs, mine, strict=True):
                    _compare(tensor, expected, arrived)
        self._give(slot)
        return 0 if sends else len(found)


def _known(words: list[int]) -> Callable[[], list[int]]:
    return lambda: words


def _copy(copies: Iterator[_Copy]) -> BlockingTransferStats:
    """Copy these boxes, and prove it."""
    done: list[_Copy] = []

    def copied() -> Iterator[torch.Tensor]:
        """Each box where it lay and where it lies, just after it was copied: it is in the CPU's cache then."""
        for copy in copies:
            copy.target.copy_(copy.source)
            done.append(copy)
            yield from (copy.source, copy.target)

    found = digests(copied())
    for copy, here, there in zip(done, found[::2], found[1::2], strict=True):
        _compare(copy.tensor, here, there)
    return BlockingTransferStats(bytes_local=sum(copy.source.nbytes for copy in done), digests_checked=len(done))


def _compare(tensor: str, sent: int, arrived: int) -> None:
    if sent != arrived:
        raise TransferError(f"{tensor}: the digest of what arrived differs from the digest of what was sent")
