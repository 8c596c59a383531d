"""What moves one worker's state from a live world to a target: made in PREPARE, for early layers and for late ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.megatron.boxes import state_boxes
from liver_slurm.engine.megatron.rank_state import RankState
from liver_slurm.engine.megatron.replay import LiveUpdates, replica_of
from liver_slurm.engine.megatron.spec import shard_spec_of
from liver_slurm.engine.megatron.storage import Moments, held_bytes
from liver_slurm.parallel.groups import Membership
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.messages import Prepare
from liver_slurm.reshard.peers import Peers
from liver_slurm.reshard.plan import RankMoves, TransferPlan
from liver_slurm.reshard.shard_spec import ShardSpec, WorldSpec, pieces
from liver_slurm.reshard.tensors import Move, Piece, state_tensors
from liver_slurm.transfer.blocking_transfer import BlockingTransfer
from liver_slurm.transfer.layerwise import LateLayer, LayerwiseTransfer
from liver_slurm.transfer.live_transfer import LiveTransfer
from liver_slurm.transfer.optimizer_replay import Replica
from liver_slurm.transfer.route import Route
from liver_slurm.transfer.transports.base import Transport
from liver_slurm.worker import fault_injection
from liver_slurm.worker.memory_agreement import MemoryAgreement

Boxes = Sequence[tuple[Piece, torch.Tensor]]
Chosen = Callable[[int], bool]
"""Which layers; -1 is what is in none."""


class TransferEndpoints:
    """This worker's place in the two worlds of a reconfiguration."""

    def __init__(
        self, message: Prepare, worker: str, old: RankState | None, target: Membership, new: RankState | None
    ) -> None:
        self.generation, self.worker = message.generation, worker
        self.source = Membership(
            message.source_generation, Layout.parse(message.source_layout), tuple(message.source_members)
        )
        self.target = target
        self.peers = Peers.of(self.source.members, target.members)
        self.me = self.peers.names.index(worker)
        self.source_rank, self.target_rank = self.source.rank_of(worker), target.rank_of(worker)
        self.old, self.new = old, new
        hosts = message.hosts
        known = all(name in hosts for name in self.peers.names)
        members = (self.source.members, target.members)
        old_places, new_places = ([(hosts[name],) for name in side] if known else [] for side in members)
        self.places = (old_places, new_places) if known else None
        """Of source and target ranks; None where they are not known."""


class TransferBuilder:
    """Makes what moves the state: early layers as the mode says, late ones each for itself."""

    def __init__(
        self,
        ends: TransferEndpoints,
        plan: TransferPlan,
        config: JobConfig,
        transport: Transport,
        room: MemoryAgreement,
    ) -> None:
        self._ends, self._plan, self._transport, self._room = ends, plan, transport, room
        self._moves = plan.moves_for(ends.source_rank, ends.target_rank)
        self._route = Route(
            transport,
            ends.me,
            ends.peers.source,
            ends.peers.target,
            config.stream.staging_bytes,
            partial(fault_injection.received, ends.worker),
        )

    def transfer(self) -> tuple[BlockingTransfer, LayerwiseTransfer | None]:
        """All early layers at once, in the pause; and the late ones, None: there are none."""
        ends, plan = self._ends, self._plan
        source = _boxes(ends.old, plan.source, ends.source_rank)
        target = _boxes(ends.new, plan.target, ends.target_rank)
        return self._transfer(self._of(self._room.early_layer), source, target), self._late(state_boxes)

    def overlap(self, device: torch.device) -> tuple[LiveTransfer, LayerwiseTransfer | None]:
        """Early layers while training runs; and the late ones."""
        ends, plan = self._ends, self._plan
        overlap = LiveTransfer(
            moves=self._of(self._room.early_layer),
            tensors=plan.tensors,
            source=_replica(ends.old, plan.source, ends.source_rank),
            target=_replica(ends.new, plan.target, ends.target_rank),
            updates=LiveUpdates(ends.old) if ends.old is not None else None,
            route=self._route,
            device=device,
            gradient_room=self._room.gradients,
        )
        return overlap, self._late(lambda *which: _boxes_of(replica_of(*which)))

    def _late(self, boxes: Callable[[RankState, ShardSpec | None, Chosen], Boxes]) -> LayerwiseTransfer | None:
        """``boxes``: those of a rank in chosen layers, as the plan names them."""
        ends, early = self._ends, self._room.early_layer
        depth = max((info.shape[0] for info in self._plan.tensors.values() if info.layered), default=0)
        late = [layer for layer in range(-1, depth) if not early(layer)]
        if not late:
            return None
        old, new = Moments(ends.old, ends.new), Moments(ends.new, ends.old)
        old.check()
        sides = [(state, shard_spec_of(state.model) if state else None) for state in (ends.old, ends.new)]

        def late_layer(layer: int) -> LateLayer:
            def this(other: int) -> bool:
                return other == layer

            def transfer() -> BlockingTransfer:
                source, target = (boxes(state, shard, this) if state else [] for state, shard in sides)
                return self._transfer(moves, source, target)

            def free() -> None:
                old.free(this)
                fault_injection.reach("freed", ends.worker)

            moves = self._of(this)
            return LateLayer(transfer, partial(new.allocate, this), free)

        senders = {ends.peers.source[move.source_rank] for move in self._moves.receives}
        receivers = {ends.peers.target[move.target_rank] for move in self._moves.sends}
        return LayerwiseTransfer(
            layers=[late_layer(layer) for layer in late],
            free_arrived=partial(old.free, early),
            held=partial(held_bytes, ends.old, ends.new),
            transport=self._transport,
            met=senders | receivers,
            me=ends.me,
            peers=len(ends.peers.names),
        )

    def _transfer(self, moves: RankMoves, source: Boxes, target: Boxes) -> BlockingTransfer:
        return BlockingTransfer(
            moves=moves,
            tensors=self._plan.tensors,
            source=source,
            target=target,
            route=self._route,
        )

    def _layer(self, box: Piece | Move) -> int:
        """The layer that a box is of; -1: of none."""
        return box.offset[0] if self._plan.tensors[box.tensor].layered else -1

    def _of(self, chosen: Chosen) -> RankMoves:
        """This worker's moves of the chosen layers."""
        return RankMoves(*([move for move in side if chosen(self._layer(move))] for side in self._moves))


def _boxes_of(replica: Replica | None) -> Boxes:
    """Each tensor's boxes, named as in a plan between worlds whose weights are derived."""
    if replica is None:
        return []
    boxes = list(replica.fixed)
    for box in replica.trained:
        tensor, offset, shape = box.piece
        names = state_tensors(tensor, "float32", derived=True)
        boxes += [(Piece(name, offset, shape), view) for name, view in zip(names, box.state, strict=True)]
    return boxes


def _boxes(state: RankState | None, spec: WorldSpec, rank: int | None) -> list[tuple[Piece, torch.Tensor]]:
    """The rank's boxes, which must be what the plan takes them to be."""
    if state is None or rank is None:
        return []
    boxes = state_boxes(state)
    _check([piece for piece, _ in boxes], spec, rank)
    return boxes


def _replica(state: RankState | None, spec: WorldSpec, rank: int | None) -> Replica | None:
    """The same for weights that are derived."""
    if state is None or rank is None:
        return None
    replica = replica_of(state)
    _check([piece for piece, _ in _boxes_of(replica)], spec, rank)
    return replica


def _check(found: list[Piece], spec: WorldSpec, rank: int) -> None:
    if sorted(found) != sorted(pieces(spec, rank)):
        raise RuntimeError(
            f"rank {rank} of {spec.layout} holds other pieces than the plan assumes; this model or this version of "
            "megatron-core shards in a way that is not known here"
        )
