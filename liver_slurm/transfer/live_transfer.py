"""One worker's part of moving state while training goes on: what leaves, what arrives, what stays, and the proof.

Made in PREPARE. From :meth:`LiveTransfer.attach` on it knows of updates, from :meth:`LiveTransfer.start` on it listens,
from :meth:`LiveTransfer.open` on boxes leave beside training; at the cutover :meth:`LiveTransfer.finish` brings every
box to the last version; :meth:`LiveTransfer.prove` then compares digests, while the new world may already run its first
forward and backward pass. Until the commit nothing of the old world's state is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import filterfalse

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.api import Replica, Updates
from liver_slurm.parallel.torch_private import copy_all
from liver_slurm.reshard.chunks import Chunk, schedule
from liver_slurm.reshard.plan import RankMoves
from liver_slurm.reshard.tensors import Move, Piece, TensorInfo
from liver_slurm.transfer import threads
from liver_slurm.transfer.bandwidth_probe import probe
from liver_slurm.transfer.crew import Crew
from liver_slurm.transfer.cuda_stream import SideStream, mark
from liver_slurm.transfer.frames import Slots
from liver_slurm.transfer.one_sided.pull import Pull, PullStats
from liver_slurm.transfer.optimizer_replay import (
    STATE_BYTES,
    Boxes,
    Content,
    Fixed,
    Index,
    Trained,
)
from liver_slurm.transfer.proof import BoxDigests
from liver_slurm.transfer.receiver import Arrivals, Receiver
from liver_slurm.transfer.route import Route
from liver_slurm.transfer.sender import Outgoing, Sender, SenderStats
from liver_slurm.transfer.shared_box import SharedBox

_SENDING, _RECEIVING = 2, 3
"""Staging slots of each half; stream.staging_bytes is divided among them. More arrive than leave at a time: a slot is
held while an update is replayed, and each source has a thread of its own."""
_ALIGNMENT = 8


@dataclass(frozen=True)
class LiveTransferStats:
    """What a worker moved."""

    bytes_sent: int = 0
    bytes_early: int = 0
    """State that left while training ran."""
    bytes_gradients: int = 0
    bytes_received: int = 0
    bytes_local: int = 0
    staging_peak_bytes: int = 0
    gradient_staging_bytes: int = 0
    digests_checked: int = 0
    exposed_seconds: float = 0.0
    """How long training was held up in the optimizer's hooks."""
    seconds: float = 0.0
    """From the cutover on, until every box was current."""


class LiveTransfer:
    """See the module. Training's thread calls it, but for :meth:`start`, :meth:`open`, :meth:`abort` and
    :meth:`prove`."""

    def __init__(
        self,
        moves: RankMoves,
        tensors: dict[str, TensorInfo],
        source: Replica | None,
        target: Replica | None,
        updates: Updates | None,
        route: Route,
        device: torch.device,
        pull: Pull | None = None,
    ) -> None:
        """
        Args:
            moves: this worker's part of a plan between worlds whose weights are derived, without what ``pull`` reads.
            source, target: what it holds in the two worlds; None for a joiner, a leaver.
            updates: of the source world; None for a joiner.
            device: where state lies.
            pull: what is read from peers' memory; None: nothing is.
        """
        source_peers, target_peers, transport = route.source_peers, route.target_peers, route.transport
        slot = max(route.staging_bytes // (_SENDING + _RECEIVING), STATE_BYTES)
        pinned = device.type == "cuda"
        self._sending, self._receiving = Slots(_SENDING, slot, pinned), Slots(_RECEIVING, slot, pinned)
        self._pool = pool = threads.idle() if device.type == "cpu" else None
        self._transport, self._device = transport, device
        self._pull, self._crew = pull, Crew(self._give_up)
        moves = RankMoves(*(list(filter(speaks, side)) for side in moves))
        sent, received = _chunks(moves, tensors, slot, max(len(source_peers), len(target_peers)))
        held = Index(source) if source is not None else None
        needed = Index(target) if target is not None else None
        self._sender: Sender | None = None
        if sent and held is not None and updates is not None:
            contents = {parts: held.content(parts) for parts in {chunk.parts for _, chunk in sent}}
            outgoing = [Outgoing(target_peers[c.target_rank], n, contents[c.parts]) for n, c in sent]
            leaving = _boxes(((target_peers[move.target_rank], move) for move in moves.sends), held)
            self._sender = Sender(
                outgoing, leaving, updates, transport, self._sending, pool, device, route.gradient_room
            )
        incoming: dict[int, dict[int, Content]] = {}
        for number, chunk in received:
            assert needed is not None
            incoming.setdefault(source_peers[chunk.source_rank], {})[number] = needed.content(chunk.parts)
        arriving = _boxes(((source_peers[move.source_rank], move) for move in moves.receives), needed)
        self._receivers = [
            Receiver(Arrivals(peer, contents, arriving[peer]), route, self._receiving, pool, device, self._crew.notify)
            for peer, contents in sorted(incoming.items())
        ]
        self._copies = _copies(moves.copies, held, needed)
        sides = zip(*self._copies, strict=True) if self._copies else ([], [])
        self._local_proof = BoxDigests([[SharedBox(tuple(each.views())) for each in side] for side in sides], pool)
        self._updates, self._side = updates, SideStream(device, slot)
        self._bytes_local = self._local_digests = 0
        self._seconds = 0.0
        self.state_bytes = sum(content.nbytes for contents in incoming.values() for content in contents.values())
        """Of state that comes from other workers."""
        if pull is not None:
            pull.notify(self._crew.notify)
            self.state_bytes += pull.state_bytes

    def probe(self) -> float:
        """Measure how fast state will come in, once prepared, before :meth:`start`; every worker must.

        Returns:
            bytes a second; where some is read and some comes in messages, the slower of the two.

        Raises:
            TransferError: a peer is gone.
        """
        targets = self._sender.peers if self._sender is not None else ()
        rates = [probe(self._transport, targets, [receiver.peer for receiver in self._receivers])]
        if self._pull is not None:
            rates.append(self._pull.probe())
        return min(filter(None, rates), default=0.0)

    def start(self) -> None:
        """Start the threads, unless they run; what arrives is taken from now on."""
        bodies = [receiver.run for receiver in self._receivers] + (
            [self._sender.run] if self._sender is not None else []
        )
        self._crew.start(bodies + (self._pull.bodies if self._pull is not None else []))

    def attach(self) -> None:
        """Watch the updates of the source world from now on; call between two steps."""
        for part in (self._sender, self._pull):
            if part is not None:
                part.attach()

    def open(self, last: bool) -> None:
        """Let state leave while training runs, once updates are watched.

        Args:
            last: the step that training is in, or begins, is the last one before the cutover.
        """
        if self._sender is not None:
            self._sender.open()
        if self._pull is not None and last:
            self._pull.open()

    def detach(self) -> None:
        """It is given up: training's thread has nothing to do with it any more."""
        for part in (self._sender, self._pull):
            if part is not None:
                part.detach()

    def finish(self) -> int:
        """Bring every box to the state that the source world has now, between two steps.

        Returns:
            how many updates its optimizer has made; 0 on a joiner that nothing was sent to.

        Raises:
            TransferError: a peer is gone, or the transfer was given up.
        """
        begun = time.perf_counter()
        self._crew.awaited()
        self.start()
        made = self._updates.adam_step() if self._updates is not None else None
        if self._pull is not None:
            self._pull.finish(made or 0)
        if self._sender is not None:
            self._sender.finish()
        self._copy_local()
        self._bytes_local = sum(target.nbytes for _, target in self._copies)
        arriving: list[Receiver | Pull] = [*self._receivers, *([self._pull] if self._pull is not None else [])]
        self._crew.wait(lambda: all(part.ended for part in arriving))
        self._seconds = time.perf_counter() - begun
        return made if made is not None else max((part.adam_step for part in arriving), default=0)

    def _copy_local(self) -> None:
        """Copy what stays here."""
        if self._device.type == "cuda":
            with torch.no_grad(), self._side.use(after=mark(self._device)):
                for kind in (Trained, Fixed):
                    pairs = self._local_views(kind)
                    if pairs:
                        copy_all(*zip(*pairs, strict=True))
            return
        pairs = self._local_views(Trained, Fixed)
        pairs.sort(key=lambda pair: -pair[0].nbytes)  # so that no thread is left with a large one at the end
        with threads.idle() as pool:  # beside the threads that replay
            for copied in threads.spread(pool, _copy, pairs):
                copied.result()

    def _local_views(self, *kinds: type[Content]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What to copy where: (to, from)."""
        pairs = [pair for pair in self._copies if isinstance(pair[0], kinds)]
        return [views for source, target in pairs for views in zip(target.views(), source.views(), strict=True)]

    def prove(self) -> LiveTransferStats:
        """Wait until every digest, here and of what was sent from here, is compared or on its way.

        Raises:
            TransferError: one differs, a peer is gone, or the transfer was given up.
        """
        with self._side.use():
            there, here = self._local_proof.take()
            if there != here:
                raise TransferError("the digest of a box that was copied inside this worker differs")
            self._local_digests += len(here)
        self._crew.wait(lambda: self._crew.idle)
        sent = self._sender.stats if self._sender is not None else SenderStats()
        pulled = self._pull.stats if self._pull is not None else PullStats()
        return LiveTransferStats(
            bytes_sent=(self._sender.bytes_sent if self._sender is not None else 0)
            + pulled.bytes_sent
            + pulled.bytes_gradients,
            bytes_early=sent.bytes_early + pulled.bytes_early,
            bytes_gradients=sent.bytes_gradients + pulled.bytes_gradients,
            bytes_received=sum(receiver.bytes_received for receiver in self._receivers) + pulled.bytes_received,
            bytes_local=self._bytes_local,
            staging_peak_bytes=self._sending.peak_bytes + self._receiving.peak_bytes + pulled.staging_peak_bytes,
            gradient_staging_bytes=self._sender.staging_bytes if self._sender is not None else 0,
            digests_checked=self._local_digests
            + sum(receiver.digests_checked for receiver in self._receivers)
            + pulled.digests_checked,
            exposed_seconds=sent.exposed_seconds,
            seconds=self._seconds,
        )

    def release(self) -> None:
        """All is proven: give the memory of messages and staged gradients back; connections stay."""
        self._sending.release()
        self._receiving.release()
        if self._sender is not None:
            self._sender.release()

    def abort(self) -> None:
        """Throw everything that runs or waits out with an error, here and at the peers; from any thread."""
        self._crew.fail(TransferError("the transfer was given up"))
        self._give_up()

    def close(self) -> None:
        """Give the connections back; nothing may run any more but what :meth:`abort` ends."""
        self.abort()
        self._crew.join()
        if self._pool is not None:
            self._pool.shutdown()
        self._transport.close()
        if self._pull is not None:
            self._pull.close()

    def _give_up(self) -> None:
        for part in (self._sender, self._pull):
            if part is not None:
                part.cancel()
        self._transport.abort()


def _chunks(
    moves: RankMoves, tensors: dict[str, TensorInfo], slot: int, ranks: int
) -> tuple[list[tuple[int, Chunk]], list[tuple[int, Chunk]]]:
    """Chunks sent and received, each with a number that is unique for its pair of workers."""
    trained = RankMoves(*(list(filter(_is_master, side)) for side in moves))
    fixed = RankMoves(*(list(filterfalse(_is_master, side)) for side in moves))
    numbered = [(2 * c.index, c) for c in schedule(trained, tensors, slot * 4 // STATE_BYTES, ranks)]
    numbered += [(2 * c.index + 1, c) for c in schedule(fixed, tensors, slot, ranks, _ALIGNMENT)]
    sent = {move[1:3] for move in moves.sends}
    outgoing = [(number, c) for number, c in numbered if (c.source_rank, c.target_rank) in sent]
    incoming = [(number, c) for number, c in numbered if (c.source_rank, c.target_rank) not in sent]
    return outgoing, incoming


def _copy(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy to the first of each pair from the second."""
    with torch.no_grad():
        for target, source in pairs:
            target.copy_(source)


def _boxes(moves: Iterable[tuple[int, Move]], index: Index | None) -> Mapping[int, Boxes]:
    """By peer, the boxes of its moves, in their order, which is the same at both ends."""
    known: dict[Piece, Content] = {}
    found: dict[int, dict[Piece, Content]] = {}
    for peer, move in moves:
        assert index is not None
        piece = Piece(move.tensor, move.offset, move.shape)
        if piece not in known:
            known[piece] = index.content([piece])
        found.setdefault(peer, {})[piece] = known[piece]
    return found


def speaks(move: Move) -> bool:
    """A master stands for its moments too, which lie alike; a weight that is not trained for itself."""
    return _is_master(move) or "@" not in move.tensor


def _is_master(move: Move) -> bool:
    return move.tensor.endswith("@master")


def _copies(copies: Sequence[Move], held: Index | None, needed: Index | None) -> list[tuple[Content, Content]]:
    """What stays on this worker: (where it lies, where it goes); nothing for what both worlds keep in one storage."""
    if held is None or needed is None:
        return []
    pieces = [Piece(move.tensor, move.offset, move.shape) for move in copies]
    pairs = [(held.content([piece]), needed.content([piece])) for piece in pieces]
    return [pair for pair in pairs if not _shared(*pair)]


def _shared(source: Content, target: Content) -> bool:
    """Both worlds keep the box in one storage."""
    return [view.data_ptr() for view in source.views()] == [view.data_ptr() for view in target.views()]
