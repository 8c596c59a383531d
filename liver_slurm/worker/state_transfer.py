"""Build the transfer of one worker's state from the live world to a target world, from the transfer plan."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import torch

from liver_slurm.base.errors import PlanError
from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.replica import Boxes, LayerFilter, Replica, Updates, joined
from liver_slurm.engine.storage import Moments, held_bytes
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.protocol.messages import Prepare
from liver_slurm.reshard.peers import Peers
from liver_slurm.reshard.plan import RankMoves, TransferPlan
from liver_slurm.reshard.shard_spec import WorldSpec, pieces
from liver_slurm.reshard.tensors import STATE_DTYPE, Box, Move, Piece, state_tensors, volume
from liver_slurm.transfer.barrier import Barrier
from liver_slurm.transfer.box_index import BoxIndex, Index, PieceIndex, ReplicaIndex, speaks
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.host_image import HostImage
from liver_slurm.transfer.layerwise import LateLayer, LayerwiseTransfer
from liver_slurm.transfer.local_copies import LocalCopies
from liver_slurm.transfer.one_sided.connect import Opening, SharedMoves, connect
from liver_slurm.transfer.one_sided.pull import Pull
from liver_slurm.transfer.transfer import Transfer
from liver_slurm.worker import fault_injection
from liver_slurm.worker.memory_agreement import MemoryAgreement
from liver_slurm.worker.mirroring import Meeting, Mirrors


class TransferEndpoints:
    """This worker's place in the two worlds of a reconfiguration: its ranks, its shards, and its peers."""

    def __init__(
        self, message: Prepare, worker: str, old: TrainingShard | None, target: Membership, new: TrainingShard | None
    ) -> None:
        self.generation, self.worker = message.generation, worker
        self.source = Membership(
            message.source_generation, Layout.parse(message.source_layout), tuple(message.source_members)
        )
        self.target = target
        rank_of = {member: rank for rank, member in enumerate(self.source.members)}
        self.lost = frozenset(rank_of[member] for member in message.lost if member not in message.mirrors)
        """Ranks of the source world that are gone with their state."""
        self.taken_over = [rank_of[member] for member, keeper in message.mirrors.items() if keeper == worker]
        """Ranks that are gone, of whose state this worker keeps the mirror."""
        self.mirrored = Replica([], [])
        """State of those."""
        self.mirrors, self.step = message.mirrors, message.step
        self.peers = Peers.of(self.source.members, target.members, message.lost, message.mirrors)
        self.me = self.peers.names.index(worker)
        self.source_rank, self.target_rank = self.source.rank_of(worker), target.rank_of(worker)
        self.old, self.new = old, new
        self.image: HostImage | None = None
        """Where state goes that the target's shard will hold, if that is not there yet."""
        hosts = message.hosts
        known = all(name in hosts for name in self.peers.names)
        members = (self.source.members, target.members)
        where = {**hosts, **{member: hosts.get(keeper, "") for member, keeper in message.mirrors.items()}}
        old_places, new_places = ([(where.get(name, ""),) for name in side] if known else [] for side in members)
        self.places = (old_places, new_places) if known else None
        """Hosts of source and target ranks; None if any is unknown."""

    def take_over(self, mirrors: Mirrors, device: torch.device, connect: Callable[[], Connections]) -> None:
        """Have what is mirrored here of members that are gone.

        Args:
            connect: makes connections by :attr:`peers`, for state that is rebuilt from parity.

        Raises:
            TransferError: a mirror does not reach the step that the next world begins with.
        """
        mirrors.rebuild(self.mirrors, self.step, Meeting(self.peers.names, connect))
        for rank in self.taken_over:
            found = mirrors.state_after(self.source.members[rank], self.step, device)
            self.mirrored = joined(self.mirrored, found)


class TransferBuilder:
    """Builds the transfer of early layers, and of late layers, which move one by one; the mode says what boxes are."""

    def __init__(
        self,
        endpoints: TransferEndpoints,
        plan: TransferPlan,
        beside_training: bool,
        memory: MemoryAgreement,
        opening: Opening,
    ) -> None:
        self._endpoints, self._plan, self._memory, self._opening = endpoints, plan, memory, opening
        self._beside_training, self._derives = beside_training, plan.source.derived
        self._moves = _all_moves(plan, endpoints)
        if self._derives:
            self._moves = RankMoves(*([move for move in side if speaks(move.tensor)] for side in self._moves))
        self._moves = fault_injection.planned(endpoints.worker, self._moves)
        check_all = _check_replica if self._derives else _check_boxes
        check_all(endpoints.old, plan.source, endpoints.source_rank)
        check_all(endpoints.new, plan.target, endpoints.target_rank)
        if endpoints.target_rank is not None:
            needed = pieces(plan.target, endpoints.target_rank)
            check_complete([piece for piece in needed if not self._derives or speaks(piece.tensor)], self._moves)

    def build(self) -> tuple[Transfer, LayerwiseTransfer | None]:
        """Build the transfer of early layers, and that of late ones; None: there are none."""
        ends, opening = self._endpoints, self._opening
        depth = max((info.shape[0] for info in self._plan.tensors.values() if info.layered), default=0)
        late = [layer for layer in range(-1, depth) if not self._memory.early_layer(layer)]
        updates = ends.old.updates() if ends.old is not None else None
        chosen: list[LayerFilter] = [self._memory.early_layer, *(partial(operator.eq, layer) for layer in late)]
        groups = [
            SharedMoves.of(
                self._moves_of(layers),
                ends.peers,
                self._index(ends.old, layers),
                partial(self._needed, layers),
            )
            for layers in chosen
        ]
        received = partial(fault_injection.received, ends.worker)
        connected = connect(opening, groups, updates, received, self._memory.gradients)
        transfer = self._transfer(connected.pull, self._memory.early_layer, updates)
        if connected.barrier is None:
            return transfer, None
        return transfer, self._late_layers(late, connected.pull, connected.barrier, updates)

    def _late_layers(
        self, late: Sequence[int], pull: Pull, barrier: Barrier, updates: Updates | None
    ) -> LayerwiseTransfer:
        """Build the transfer of the layers that have no room beside the live world."""
        ends = self._endpoints
        old, new = Moments(ends.old, ends.new), Moments(ends.new, ends.old)
        old.check()

        def late_layer(number: int, layer: int) -> LateLayer:
            this = partial(operator.eq, layer)

            def free() -> None:
                old.free(this)
                fault_injection.reach("freed", ends.worker)

            return LateLayer(
                lambda: self._transfer(pull.late(number), this, updates), partial(new.allocate, this), free
            )

        return LayerwiseTransfer(
            layers=[late_layer(number, layer) for number, layer in enumerate(late)],
            free_arrived=partial(old.free, self._memory.early_layer),
            held=partial(held_bytes, ends.old, ends.new),
            barrier=barrier,
        )

    def _transfer(self, pull: Pull, chosen: LayerFilter, updates: Updates | None) -> Transfer:
        """Return what moves the chosen layers, whose storage is there."""
        held, needed = self._index(self._endpoints.old, chosen), self._needed(chosen)
        received = partial(fault_injection.received, self._endpoints.worker)
        moves, device = self._moves_of(chosen).copies, self._opening.device
        copies = LocalCopies(moves, held, needed, device, on_copied=received)
        return Transfer(pull, copies, updates, self._beside_training)

    def _needed(self, chosen: LayerFilter) -> Index:
        """Return what the target's shard will hold of the chosen layers, whose storage is there."""
        image = self._endpoints.image
        return ReplicaIndex(image.replica) if image is not None else self._index(self._endpoints.new, chosen)

    def _index(self, shard: TrainingShard | None, chosen: LayerFilter) -> Index:
        """Return what a shard holds of the chosen layers, whose storage is there."""
        if not self._derives:
            return BoxIndex(shard.boxes(chosen) if shard is not None else [])
        replica = shard.replica(chosen) if shard is not None else Replica([], [])
        if shard is not None and shard is self._endpoints.old:
            mirrored = self._endpoints.mirrored
            trained = [box for box in mirrored.trained if chosen(self._layer(box.piece))]
            fixed = [(piece, view) for piece, view in mirrored.fixed if chosen(self._layer(piece))]
            replica = joined(replica, Replica(trained, fixed))
        return ReplicaIndex(replica)

    def _layer(self, box: Piece | Move) -> int:
        """Return the layer that a box belongs to; -1: none."""
        weight, _, _ = box.tensor.partition("@")
        return box.offset[0] if self._plan.target.weights[weight].layered else -1

    def _moves_of(self, chosen: LayerFilter) -> RankMoves:
        """Return this worker's moves of the chosen layers."""
        return RankMoves(*([move for move in side if chosen(self._layer(move))] for side in self._moves))


def _all_moves(plan: TransferPlan, endpoints: TransferEndpoints) -> RankMoves:
    """Return this worker's moves, with those of ranks that are gone and that it stands in for."""
    moves = plan.moves_for(endpoints.source_rank, endpoints.target_rank)
    if not endpoints.mirrors:
        return moves
    taken, here = set(endpoints.taken_over), endpoints.target_rank
    sends = [move for rank in taken for move in plan.moves_for(rank, None).sends if move.target_rank != here]
    copies = [move for move in moves.receives if move.source_rank in taken]
    # A pair of workers now has the moves of several pairs of ranks: both ends put them into one order.
    return RankMoves(
        sorted([*moves.sends, *sends], key=_place),
        sorted((move for move in moves.receives if move.source_rank not in taken), key=_place),
        [*moves.copies, *copies],
    )


def _place(move: Move) -> tuple[str, Box, Box]:
    return move.tensor, move.offset, move.shape


def _boxes_of(replica: Replica) -> Boxes:
    """Return a replica's boxes tensor by tensor, named as in a plan between worlds whose weights are derived."""
    boxes = list(replica.fixed)
    for box in replica.trained:
        tensor, offset, shape = box.piece
        names = state_tensors(tensor, STATE_DTYPE, derived=True, moments=box.moments)
        boxes += [(Piece(name, offset, shape), view) for name, view in zip(names, box.state, strict=True)]
    return boxes


def check_complete(needed: Sequence[Piece], moves: RankMoves) -> None:
    """Check that all that a rank needs of a target world comes from somewhere.

    Args:
        needed: its pieces, but for those that come with others.

    Raises:
        PlanError: the boxes that arrive do not make up one of the pieces.
    """
    index = PieceIndex((piece, piece) for piece in needed)
    arrives: Counter[Piece] = Counter()
    for tensor, offset, shape in {
        Piece(move.tensor, move.offset, move.shape) for move in (*moves.receives, *moves.copies)
    }:
        around = index.around(tensor, offset, shape)
        if around is not None:
            arrives[around[1]] += volume(shape)
    for piece in needed:
        if arrives[piece] != volume(piece.shape):
            raise PlanError(
                f"{piece.tensor}: of the box at {piece.offset} of shape {piece.shape}, which the new world needs here, "
                "not all comes from somewhere"
            )


def _check_boxes(shard: TrainingShard | None, spec: WorldSpec, rank: int | None) -> None:
    """Compare the rank's boxes with what the plan assumes."""
    if shard is not None and rank is not None:
        check_held(shard.boxes(), spec, rank)


def _check_replica(shard: TrainingShard | None, spec: WorldSpec, rank: int | None) -> None:
    """Compare the rank's replica with what the plan assumes."""
    if shard is not None and rank is not None:
        check_held(_boxes_of(shard.replica()), spec, rank)


def check_held(found: Boxes, spec: WorldSpec, rank: int) -> None:
    """Compare a rank's boxes with what the plan assumes: which they are, and of what type.

    Raises:
        RuntimeError: they are others.
    """
    here, planned = (Counter(some) for some in ((piece for piece, _ in found), pieces(spec, rank)))
    if here != planned:
        (other, *_) = sorted({*(here - planned), *(planned - here)})
        raise RuntimeError(
            f"rank {rank} of {spec.layout} holds other pieces than the plan assumes ({other.tensor} at "
            f"{other.offset}, shape {other.shape}); this model or this version of the engine shards in a way that is "
            "not known here"
        )
    for piece, view in found:
        dtype, is_planned = str(view.dtype).removeprefix("torch."), spec.tensors[piece.tensor].dtype
        if dtype != is_planned:
            raise RuntimeError(f"rank {rank} of {spec.layout} holds {piece.tensor} in {dtype}, not in {is_planned}")
