"""Opening what carries a reconfiguration's state: pairs whose memory can be read, and a transport for all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from liver_slurm.config.schema import StreamSection
from liver_slurm.engine.api import Updates
from liver_slurm.reshard.peers import Peers
from liver_slurm.reshard.plan import RankMoves
from liver_slurm.reshard.tensors import Piece
from liver_slurm.transfer import threads
from liver_slurm.transfer.one_sided.handshake import agree
from liver_slurm.transfer.one_sided.owner import Owner
from liver_slurm.transfer.one_sided.pull import Pull
from liver_slurm.transfer.one_sided.puller import Puller
from liver_slurm.transfer.one_sided.staging import Staging
from liver_slurm.transfer.shared_box import SharedBox
from liver_slurm.transfer.transports.base import Transport
from liver_slurm.transfer.transports.select import open_transport


@dataclass(frozen=True)
class Opening:
    """What the connections of one worker in one reconfiguration are opened with."""

    store: Any
    """A torch store that all workers reach."""
    name: str
    """The same on every worker and unique in the store."""
    me: int
    peers: int
    stream: StreamSection
    device: torch.device
    timeout: timedelta
    """How long a wait for one message may take."""

    def transport(self, messages: bool) -> Transport:
        """Open the transport of messages; every worker must. ``messages``: whether any state comes in them."""
        return open_transport(
            self.store,
            self.name,
            self.peers,
            self.me,
            self.stream,
            self.device,
            self.timeout,
            # Without messages it carries a few words only, for which no NCCL group is made.
            beside_training=self.stream.mode == "overlap" or not messages,
        )


@dataclass(frozen=True)
class SharedMoves:
    """The boxes that this worker and its peers have in common, by peer, in the order of the plan."""

    outgoing: Mapping[int, Sequence[SharedBox]]
    incoming: Mapping[int, Sequence[SharedBox]]

    @classmethod
    def of(
        cls,
        moves: RankMoves,
        peers: Peers,
        held: Callable[[Piece], SharedBox],
        needed: Callable[[Piece], SharedBox],
    ) -> SharedMoves:
        """
        Args:
            held, needed: find a box in what this worker has in the source world, in the target world.
        """
        outgoing: dict[int, list[SharedBox]] = {}
        incoming: dict[int, list[SharedBox]] = {}
        known: dict[Piece, SharedBox] = {}
        for move in moves.sends:
            piece = Piece(move.tensor, move.offset, move.shape)
            if piece not in known:  # several peers may get it: its digest is taken once
                known[piece] = held(piece)
            outgoing.setdefault(peers.target[move.target_rank], []).append(known[piece])
        for move in moves.receives:
            piece = Piece(move.tensor, move.offset, move.shape)
            incoming.setdefault(peers.source[move.source_rank], []).append(needed(piece))
        return cls(outgoing, incoming)


@dataclass(frozen=True)
class Connected:
    """What was opened."""

    pull: Pull | None
    """None: this worker reads nothing, and nothing is read here."""
    reads: frozenset[int]
    """Peers whose memory this worker reads."""
    read_by: frozenset[int]
    messages: bool
    """Some pair of the transfer needs messages."""
    staging_bytes: int
    """What messages may take; the same on every worker."""

    def left(self, moves: RankMoves, peers: Peers) -> RankMoves:
        """The moves that go in messages, and those within this worker."""
        sends = [move for move in moves.sends if peers.target[move.target_rank] not in self.read_by]
        receives = [move for move in moves.receives if peers.source[move.source_rank] not in self.reads]
        return RankMoves(sends, receives, moves.copies)


def connect(
    opening: Opening,
    shared: SharedMoves,
    updates: Updates | None,
    on_received: Callable[[torch.Tensor], None],
) -> Connected:
    """Find out which peers' memory can be read, and make what reads it; every worker must.

    Args:
        updates: of the source world, where it trains while state is read.
        on_received: called with each view that was read.
    """
    staging_bytes = opening.stream.staging_bytes
    if opening.stream.transport != "auto":
        return Connected(None, frozenset(), frozenset(), messages=True, staging_bytes=staging_bytes)
    scope = dist.PrefixStore(f"{opening.name}/memory/", opening.store)
    counter = torch.zeros(1, dtype=torch.int64, device=opening.device)
    agreed = agree(scope, opening.me, opening.peers, shared.outgoing, shared.incoming, counter)
    reads, read_by = frozenset(agreed.readers), agreed.read_by
    if agreed.anywhere and not agreed.everywhere and opening.stream.mode == "overlap":
        staging_bytes //= 2  # the other half is for gradients of what is read
    pull = None
    if reads or read_by:
        with ExitStack() as opened:  # what is closed again where the rest fails
            for _, reader in agreed.readers.values():
                opened.callback(reader.close)
            words = _words(opening, scope)
            opened.callback(words.close)
            words.connect(sorted(reads | read_by))
            pool = threads.idle() if opening.device.type == "cpu" else None
            owner = None
            if read_by:
                outgoing = {peer: shared.outgoing[peer] for peer in sorted(read_by)}
                owner = Owner(outgoing, counter, updates, words, pool, opening.device)
            staging = Staging(staging_bytes, threads.idle_size() if pool is not None else max(1, len(reads)))
            pullers = [
                Puller(
                    peer,
                    shared.incoming[peer],
                    agreed.readers[peer],
                    words,
                    pool,
                    staging,
                    opening.device,
                    on_received,
                )
                for peer in sorted(reads)
            ]
            pull = Pull(owner, pullers, words, pool, staging)
            opened.pop_all()
    return Connected(pull, reads, read_by, not agreed.everywhere, staging_bytes)


def _words(opening: Opening, scope: Any) -> Transport:
    """Open the transport of what owners and receivers say to each other."""
    return open_transport(
        scope,
        "words",
        opening.peers,
        opening.me,
        opening.stream,
        opening.device,
        opening.timeout,
        beside_training=True,
    )
