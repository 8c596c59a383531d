"""Build the transfer of one worker's state from the live world to a target world, from the transfer plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Boxes, LayerFilter, Replica, TrainingShard, Updates
from liver_slurm.engine.storage import Moments, held_bytes
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.protocol.messages import Prepare
from liver_slurm.reshard.peers import Peers
from liver_slurm.reshard.plan import RankMoves, TransferPlan
from liver_slurm.reshard.shard_spec import WorldSpec, pieces
from liver_slurm.reshard.tensors import Move, Piece, state_tensors
from liver_slurm.transfer.blocking_transfer import BlockingTransfer, BoxIndex
from liver_slurm.transfer.layerwise import LateLayer, LayerwiseTransfer
from liver_slurm.transfer.live_transfer import LiveTransfer, speaks
from liver_slurm.transfer.one_sided.connect import Opening, SharedMoves, connect
from liver_slurm.transfer.one_sided.pull import Pull
from liver_slurm.transfer.optimizer_replay import Index
from liver_slurm.transfer.route import Route
from liver_slurm.worker import fault_injection
from liver_slurm.worker.memory_agreement import MemoryAgreement


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
        self.peers = Peers.of(self.source.members, target.members)
        self.me = self.peers.names.index(worker)
        self.source_rank, self.target_rank = self.source.rank_of(worker), target.rank_of(worker)
        self.old, self.new = old, new
        hosts = message.hosts
        known = all(name in hosts for name in self.peers.names)
        members = (self.source.members, target.members)
        old_places, new_places = ([(hosts[name],) for name in side] if known else [] for side in members)
        self.places = (old_places, new_places) if known else None
        """Hosts of source and target ranks; None if any is unknown."""


class TransferBuilder:
    """Builds the transfer of early layers, which the mode decides, and of late layers, which move one by one."""

    def __init__(
        self,
        endpoints: TransferEndpoints,
        plan: TransferPlan,
        config: JobConfig,
        memory: MemoryAgreement,
        opening: Opening,
    ) -> None:
        self._endpoints, self._plan, self._memory = endpoints, plan, memory
        self._config, self._opening = config, opening
        self._moves = plan.moves_for(endpoints.source_rank, endpoints.target_rank)

    def blocking(self) -> tuple[BlockingTransfer, LayerwiseTransfer | None]:
        """Build the transfers of mode pause: all early layers at once, and the late ones; None: there are none."""
        ends, plan = self._endpoints, self._plan
        source = _boxes(ends.old, plan.source, ends.source_rank)
        target = _boxes(ends.new, plan.target, ends.target_rank)
        held, needed = BoxIndex(source), BoxIndex(target)
        moves = self._moves_of(self._memory.early_layer)
        shared = SharedMoves.of(moves, ends.peers, held.shared, needed.shared)
        pull, left, route = self._connect(moves, shared, None)
        late = self._late_layers(route, lambda shard, chosen: shard.boxes(chosen))
        return self._blocking(left, source, target, route, pull), late

    def live(self) -> tuple[LiveTransfer, LayerwiseTransfer | None]:
        """Build the transfers of mode overlap: early layers while training runs, and the late ones."""
        ends, plan = self._endpoints, self._plan
        source = _replica(ends.old, plan.source, ends.source_rank)
        target = _replica(ends.new, plan.target, ends.target_rank)
        chosen = self._moves_of(self._memory.early_layer)
        moves = RankMoves(*(list(filter(speaks, side)) for side in chosen))
        held, needed = (Index(side or Replica([], [])) for side in (source, target))
        shared = SharedMoves.of(moves, ends.peers, held.shared, needed.shared)
        pull, left, route = self._connect(moves, shared, ends.old.updates() if ends.old is not None else None)
        transfer = LiveTransfer(
            moves=left,
            tensors=plan.tensors,
            source=source,
            target=target,
            updates=ends.old.updates() if ends.old is not None else None,
            route=route,
            device=self._opening.device,
            pull=pull,
        )
        return transfer, self._late_layers(route, lambda shard, chosen: _boxes_of(shard.replica(chosen)))

    def _connect(
        self, moves: RankMoves, shared: SharedMoves, updates: Updates | None
    ) -> tuple[Pull | None, RankMoves, Route]:
        """Find out which peers' memory can be read, and open the transport for the moves that are left."""
        ends, opening = self._endpoints, self._opening
        received = partial(fault_injection.received, ends.worker)
        connected = connect(opening, shared, updates, received)
        transport = opening.transport(messages=connected.messages)
        route = Route(
            transport,
            ends.me,
            ends.peers.source,
            ends.peers.target,
            connected.staging_bytes,
            received,
            self._memory.gradients,
        )
        return connected.pull, connected.left(moves, ends.peers), route

    def _late_layers(
        self, route: Route, boxes_of: Callable[[TrainingShard, LayerFilter], Boxes]
    ) -> LayerwiseTransfer | None:
        """Build the transfer of the layers that have no room beside the live world.

        Args:
            boxes_of: a shard's boxes in chosen layers, named as the plan names them.
        """
        ends, early = self._endpoints, self._memory.early_layer
        depth = max((info.shape[0] for info in self._plan.tensors.values() if info.layered), default=0)
        late = [layer for layer in range(-1, depth) if not early(layer)]
        if not late:
            return None
        old, new = Moments(ends.old, ends.new), Moments(ends.new, ends.old)
        old.check()

        def late_layer(layer: int) -> LateLayer:
            def this(other: int) -> bool:
                return other == layer

            def transfer() -> BlockingTransfer:
                source, target = (boxes_of(shard, this) if shard else [] for shard in (ends.old, ends.new))
                return self._blocking(moves, source, target, route)

            def free() -> None:
                old.free(this)
                fault_injection.reach("freed", ends.worker)

            moves = self._moves_of(this)
            return LateLayer(transfer, partial(new.allocate, this), free)

        senders = {ends.peers.source[move.source_rank] for move in self._moves.receives}
        receivers = {ends.peers.target[move.target_rank] for move in self._moves.sends}
        return LayerwiseTransfer(
            layers=[late_layer(layer) for layer in late],
            free_arrived=partial(old.free, early),
            held=partial(held_bytes, ends.old, ends.new),
            transport=route.transport,
            met=senders | receivers,
            me=ends.me,
            peers=len(ends.peers.names),
        )

    def _blocking(
        self, moves: RankMoves, source: Boxes, target: Boxes, route: Route, pull: Pull | None = None
    ) -> BlockingTransfer:
        return BlockingTransfer(
            moves=moves,
            tensors=self._plan.tensors,
            source=source,
            target=target,
            route=route,
            pull=pull,
        )

    def _layer(self, box: Piece | Move) -> int:
        """The layer that a box belongs to; -1: none."""
        return box.offset[0] if self._plan.tensors[box.tensor].layered else -1

    def _moves_of(self, chosen: LayerFilter) -> RankMoves:
        """This worker's moves of the chosen layers."""
        return RankMoves(*([move for move in side if chosen(self._layer(move))] for side in self._moves))


def _boxes_of(replica: Replica) -> Boxes:
    """A replica's boxes tensor by tensor, named as in a plan between worlds whose weights are derived."""
    boxes = list(replica.fixed)
    for box in replica.trained:
        tensor, offset, shape = box.piece
        names = state_tensors(tensor, "float32", derived=True)
        boxes += [(Piece(name, offset, shape), view) for name, view in zip(names, box.state, strict=True)]
    return boxes


def _boxes(shard: TrainingShard | None, spec: WorldSpec, rank: int | None) -> Boxes:
    """The rank's boxes, checked against what the plan assumes."""
    if shard is None or rank is None:
        return []
    boxes = shard.boxes()
    _check([piece for piece, _ in boxes], spec, rank)
    return boxes


def _replica(shard: TrainingShard | None, spec: WorldSpec, rank: int | None) -> Replica | None:
    """The rank's replica, checked against what the plan assumes."""
    if shard is None or rank is None:
        return None
    replica = shard.replica()
    _check([piece for piece, _ in _boxes_of(replica)], spec, rank)
    return replica


def _check(found: list[Piece], spec: WorldSpec, rank: int) -> None:
    if sorted(found) != sorted(pieces(spec, rank)):
        raise RuntimeError(
            f"rank {rank} of {spec.layout} holds other pieces than the plan assumes; this model or this version of "
            "the engine shards in a way that is not known here"
        )
