"""Opening what carries a reconfiguration's state: each worker reads it from its owners, in the best way for each."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from liver_slurm.base.errors import BadInput, TransferError
from liver_slurm.config.schema import StreamSection
from liver_slurm.engine.replica import Updates
from liver_slurm.reshard.peers import Peers
from liver_slurm.reshard.plan import RankMoves
from liver_slurm.reshard.tensors import Piece
from liver_slurm.transfer import threads
from liver_slurm.transfer.barrier import Barrier
from liver_slurm.transfer.box_index import Index
from liver_slurm.transfer.connections import Connections, machine
from liver_slurm.transfer.one_sided.description import Description, Reader, Refusal
from liver_slurm.transfer.one_sided.handshake import Agreement, Source, Way, agree, describe, open_best, openers
from liver_slurm.transfer.one_sided.line import Line
from liver_slurm.transfer.one_sided.owner import Owner
from liver_slurm.transfer.one_sided.pull import Pull
from liver_slurm.transfer.one_sided.puller import Puller
from liver_slurm.transfer.one_sided.registered_memory import Agent
from liver_slurm.transfer.one_sided.staging import Staging
from liver_slurm.transfer.shared_box import SharedBox

_log = logging.getLogger(__name__)


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

    @property
    def interface(self) -> str | None:
        """The network interface; None: any."""
        # entry.py and local/process.py tell gloo and NCCL the interface in this variable, a local run that it is lo
        return self.stream.interface or os.environ.get("GLOO_SOCKET_IFNAME")

    def connections(self, purpose: str) -> Connections:
        """Connections to all peers."""
        store = dist.PrefixStore(f"{self.name}/{purpose}/", self.store)
        return Connections(store, self.me, self.peers, self.stream.transport != "tcp", self.interface)


@dataclass(frozen=True)
class SharedMoves:
    """The boxes that this worker and its peers have in common, by peer, in the order of the plan."""

    outgoing: Mapping[int, Sequence[SharedBox]]
    incoming: Mapping[int, Sequence[Piece]]
    needed: Callable[[], Index]
    """Where what is incoming belongs, asked for once it has storage."""

    @classmethod
    def of(cls, moves: RankMoves, peers: Peers, held: Index, needed: Callable[[], Index]) -> SharedMoves:
        """
        Args:
            held, needed: what this worker has in the source world, in the target world.
        """
        outgoing: dict[int, list[SharedBox]] = {}
        incoming: dict[int, list[Piece]] = {}
        known: dict[Piece, SharedBox] = {}
        for move in moves.sends:
            piece = Piece(move.tensor, move.offset, move.shape)
            if piece not in known:  # several peers may get it: its digest is taken once
                known[piece] = held.shared(piece)
            outgoing.setdefault(peers.target[move.target_rank], []).append(known[piece])
        for move in moves.receives:
            piece = Piece(move.tensor, move.offset, move.shape)
            incoming.setdefault(peers.source[move.source_rank], []).append(piece)
        return cls(outgoing, incoming, needed)


@dataclass(frozen=True)
class Connected:
    """What was opened."""

    pull: Pull
    barrier: Barrier | None
    """Of all workers; None: there are no late layers."""
    reads: Mapping[int, Way]
    """Peers whose state this worker reads, and how."""
    read_by: Mapping[int, Way]


def connect(
    opening: Opening,
    groups: Sequence[SharedMoves],
    updates: Updates | None,
    on_received: Callable[[Sequence[SharedBox]], None],
    gradient_room: int | None = None,
) -> Connected:
    """Find out how each peer's state can be read, and make what reads it; every worker must.

    Args:
        groups: what is read together: first all that has room beside the live world, then one late layer after the
            other; as many on every worker.
        updates: of the source world, where it trains while state is read.
        on_received: called with the boxes of each peer once all are current, before their digests are taken.
        gradient_room: memory for copies of gradients; None: no limit.

    Raises:
        BadInput: ``stream.transport`` allows no way that works.
        TransferError: a peer is gone, or has other boxes than the plan says.
    """
    incoming = _by_peer([group.incoming for group in groups])
    outgoing = _by_peer([group.outgoing for group in groups])
    pool = threads.idle() if opening.device.type == "cpu" else None
    users = threads.idle_size() if pool is not None else max(1, len(incoming) + len(outgoing))
    staging = Staging(opening.stream.staging_bytes, users)
    counter = torch.zeros(1, dtype=torch.int64, device=opening.device)
    late = len(groups) > 1
    with ExitStack() as opened:  # what is closed again where the rest fails
        if pool is not None:
            opened.callback(pool.shutdown)
        connections: list[Connections] = []
        for purpose in ["lines", "barrier"] if late else ["lines"]:
            connections.append(opening.connections(purpose))
            opened.callback(connections[-1].close)
        agent = _make_agent(opening, [*incoming, *outgoing])
        if agent is not None:
            opened.callback(agent.close)
        owner = None
        if outgoing:
            by_group = [{peer: some[n] for peer, some in outgoing.items()} for n in range(len(groups))]
            owner = Owner(by_group, counter, updates, pool)
            owner.serve(connections[0], staging, agent.turn if agent is not None else None)
            opened.callback(owner.close)
        for each in connections:
            opened.callback(each.give_up)
        lines = {peer: Line(connections[0], peer) for peer in incoming}
        agreed = _agree(opening, outgoing, counter, lines, staging, agent)
        for source in agreed.sources.values():
            opened.callback(source.reader.close)
        if owner is not None:
            owner.follow([peer for peer, way in agreed.read_by.items() if way != "memory"], gradient_room)
        receiving = _Receiving(lines, agreed.sources, groups, pool, staging, opening.device, on_received)
        pull = Pull(owner, receiving.pullers(0), connections, pool, staging, receiving.pullers, agent)
        barrier = Barrier(connections[1], opening.me, opening.peers) if late else None
        opened.pop_all()
    return Connected(pull, barrier, {peer: source.way for peer, source in agreed.sources.items()}, agreed.read_by)


_Groups = Sequence[Sequence[SharedBox]]
"""Boxes that one peer and this worker have in common, by group."""
_Each = TypeVar("_Each")


@dataclass(frozen=True)
class _Receiving:
    """What makes this worker's pullers."""

    lines: Mapping[int, Line]
    sources: Mapping[int, Source]
    groups: Sequence[SharedMoves]
    pool: Executor | None
    staging: Staging
    device: torch.device
    on_received: Callable[[Sequence[SharedBox]], None]

    def pullers(self, group: int) -> list[Puller]:
        """Return those of a group, one for each peer, once its storage is there."""
        needed = self.groups[group].needed()
        return [self._puller(peer, source, group, needed) for peer, source in sorted(self.sources.items())]

    def _puller(self, peer: int, source: Source, group: int, needed: Index) -> Puller:
        described = source.description.boxes
        ends = list(accumulate(len(each.incoming.get(peer, ())) for each in self.groups))
        if len(described) != ends[-1]:
            raise TransferError(f"a peer has {len(described)} boxes where the plan says {ends[-1]}")
        boxes = [needed.shared(piece) for piece in self.groups[group].incoming.get(peer, ())]
        described = described[ends[group] - len(boxes) : ends[group]]
        line, reader = self.lines[peer], source.reader
        return Puller(line, reader, boxes, described, self.pool, self.staging, self.device, self.on_received)


def _by_peer(groups: Sequence[Mapping[int, Sequence[_Each]]]) -> dict[int, Sequence[Sequence[_Each]]]:
    """Return, for each peer that has boxes in any group, its boxes of all groups."""
    return {peer: [group.get(peer, ()) for group in groups] for peer in sorted({*chain(*groups)})}


def _agree(
    opening: Opening,
    outgoing: Mapping[int, _Groups],
    counter: torch.Tensor,
    lines: Mapping[int, Line],
    staging: Staging,
    agent: Agent | None,
) -> Agreement:
    """Agree with all workers how each of them reads from which; see :func:`connect`."""
    device = opening.device

    def open_reader(peer: int, owner: Description) -> tuple[Way, Reader]:
        return open_best(opening.stream.transport, peer, openers(owner, lines[peer], device, staging, agent))

    store = dist.PrefixStore(f"{opening.name}/memory/", opening.store)
    boxes = {peer: list(chain(*groups)) for peer, groups in outgoing.items()}
    metadata = b""
    if agent is not None:
        agent.register([counter, *(view for some in boxes.values() for box in some for view in box.state)])
        metadata = agent.metadata()
    described = {peer: describe(some, counter, metadata) for peer, some in boxes.items()}
    return agree(store, opening.me, opening.peers, described, lines, open_reader)


def _make_agent(opening: Opening, peers: Iterable[int]) -> Agent | None:
    """Return a nixl agent, where it is asked for, or of use for one of these peers and there.

    Raises:
        BadInput: it is asked for, and cannot be used.
    """
    store = dist.PrefixStore(f"{opening.name}/machines/", opening.store)
    store.set(str(opening.me), machine())
    asked = opening.stream.transport == "ucx"
    if opening.stream.transport in ("tcp", "shm") or (not asked and importlib.util.find_spec("nixl") is None):
        return None
    if not asked and all(store.get(str(peer)).decode() == machine() for peer in peers):
        return None
    try:
        return Agent(opening.device, opening.interface)
    except Refusal as error:
        if asked:
            raise BadInput(f"stream.transport is 'ucx', but {error}; set it to 'auto'") from error
        _log.warning("%s; state is read over TCP", error)
        return None
