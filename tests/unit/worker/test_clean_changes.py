"""Changes of layout without a defect: nothing that finds defects takes one of 10,000 for one with.

Each is drawn from its number: a model, two worlds, who stays and who joins. It is planned, checked, copied in this
process and proven, by what a worker does all that with; beside it stands what every rank should have.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from small_models import Model

from liver_slurm.engine.replica import Boxes, Replica, TrainedBox
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.messages import Handover, Streamed
from liver_slurm.protocol.votes import disagreement
from liver_slurm.reshard.peers import Peers
from liver_slurm.reshard.plan import RankMoves, TransferPlan, plan_transfer
from liver_slurm.reshard.shard_spec import GroupSpec, WorldSpec, pieces
from liver_slurm.reshard.tensors import MOMENTS, Piece
from liver_slurm.transfer.box_index import BoxIndex, Index, ReplicaIndex, speaks
from liver_slurm.transfer.one_sided.connect import SharedMoves
from liver_slurm.transfer.one_sided.description import BoxDescription, view_of
from liver_slurm.transfer.one_sided.puller import _parts
from liver_slurm.transfer.proof import BoxDigests
from liver_slurm.transfer.shared_box import SharedBox
from liver_slurm.worker.state_transfer import check_complete, check_held

ALL, AT_ONCE, OFTEN, MOST_RANKS = 10_000, 500, 20, 8

Truth = dict[str, torch.Tensor]


def drawn_world(draw: random.Random, model: Model, derived: bool) -> WorldSpec:
    """A world of at most :data:`MOST_RANKS` ranks."""
    while True:
        layout = Layout(*(draw.choice((1, 1, 2, 4)) for _ in range(3)), cp=draw.choice((1, 1, 2)))
        if layout.size <= MOST_RANKS:
            break
    if model.experts:
        parts = [ep for ep in (1, 2, 4) if layout.dense_replicas % ep == 0 and model.experts % ep == 0]
        layout = replace(layout, ep=draw.choice(parts))
    return replace(model.world(layout, draw.random() < 0.5, draw.choice((None, 200, 700))), derived=derived)


def optimized(world: WorldSpec, moments: Mapping[bool, tuple[str, ...]]) -> WorldSpec:
    """The world with other moments, by whether a weight is of a layer."""
    shards = {
        place: replace(shard, params=tuple(replace(one, moments=moments[one.layer >= 0]) for one in shard.params))
        for place, shard in world.shards.items()
    }
    return replace(world, shards=shards)


def drawn_plan(draw: random.Random) -> TransferPlan:
    """A change of layout: some workers stay, in any order, some leave and some join."""
    tied, half, frozen, derived = (draw.random() < 0.5 for _ in range(4))
    within, outside = draw.choice((("adam", "adam"), ("sgd", "sgd"), ("muon", "adam")))
    moments = {True: MOMENTS[within], False: MOMENTS[outside]}
    model = Model(4, tied, "bfloat16" if half else "float32", frozen, experts=draw.choice((0, 4)))
    source, target = (optimized(drawn_world(draw, model, derived), moments) for _ in range(2))
    slots = [*range(source.layout.size), *[None] * target.layout.size]
    return plan_transfer(source, target, draw.sample(slots, target.layout.size))


def held(world: WorldSpec, rank: int, truth: Truth | None) -> Boxes:
    """What a rank holds: the truth, or what nobody has sent."""
    found = []
    for piece in pieces(world, rank):
        dtype = getattr(torch, world.tensors[piece.tensor].dtype)
        place = tuple(slice(at, at + size) for at, size in zip(piece.offset, piece.shape, strict=True))
        view = truth[piece.tensor][place].clone() if truth is not None else torch.full(piece.shape, 7.0, dtype=dtype)
        found.append((piece, view))
    return found


def index_of(world: WorldSpec, boxes: Boxes) -> Index:
    """The rank's boxes as its mode of streaming looks for them."""
    if not world.derived:
        return BoxIndex(boxes)
    by_piece: dict[tuple[Any, ...], dict[str, torch.Tensor]] = {}
    for piece, view in boxes:
        weight, _, kind = piece.tensor.partition("@")
        by_piece.setdefault((weight, piece.offset, piece.shape), {})[kind] = view
    trained = [
        TrainedBox(
            Piece(*key),
            tuple(views[kind] for kind in ("master", *world.moments[key[0]])),
            partial(views.__getitem__, "master"),
            GroupSpec(),
            world.moments[key[0]],
        )
        for key, views in by_piece.items()
        if "master" in views
    ]
    return ReplicaIndex(Replica(trained, [(Piece(*key), views[""]) for key, views in by_piece.items() if "" in views]))


@dataclass
class Worker:
    """One worker's part of a change."""

    target: int | None
    """Its rank in the target world."""
    after: Boxes
    copies: list[tuple[SharedBox, SharedBox]]
    shared: SharedMoves


def workers(plan: TransferPlan, truth: Truth) -> Iterator[Worker]:
    """All workers, prepared: what they hold and what comes to them is checked."""
    old = [f"s{rank}" for rank in range(plan.source.layout.size)]
    new = [f"s{kept}" if kept is not None else f"j{rank}" for rank, kept in enumerate(plan.keep)]
    peers = Peers.of(old, new)
    for name in peers.names:
        source, target = (side.index(name) if name in side else None for side in (old, new))
        moves = plan.moves_for(source, target)
        if plan.source.derived:
            moves = RankMoves(*([move for move in some if speaks(move.tensor)] for some in moves))
        before = held(plan.source, source, truth) if source is not None else []
        after = held(plan.target, target, None) if target is not None else []
        if source is not None:
            check_held(before, plan.source, source)
        if target is not None:
            check_held(after, plan.target, target)
            needed = [piece for piece, _ in after if not plan.target.derived or speaks(piece.tensor)]
            check_complete(needed, moves)
        here, there = index_of(plan.source, before), index_of(plan.target, after)
        stays = [Piece(move.tensor, move.offset, move.shape) for move in moves.copies]
        shared = SharedMoves.of(moves, peers, here, lambda there=there: there)
        yield Worker(target, after, [(here.shared(piece), there.shared(piece)) for piece in stays], shared)


def move(boxes: list[tuple[SharedBox, SharedBox]]) -> None:
    """Copy to the second of each pair from the first, and prove it."""
    described = [BoxDescription(tuple(map(view_of, box.state)), None, box.identity) for box, _ in boxes]
    arrived = [box for _, box in boxes]
    assert len(list(_parts(arrived, described, None))) == len(boxes)  # type: ignore[arg-type]
    for sent, box in boxes:
        for source, target in zip(sent.state, box.state, strict=True):
            target.copy_(source)
    there, here = BoxDigests([[box for box, _ in boxes], arrived]).take()
    assert there == here


def change(number: int) -> None:
    """Make one change, and look whether every rank has what it should have."""
    draw = random.Random(number)
    plan = drawn_plan(draw)
    values = torch.Generator().manual_seed(number)
    truth = {
        name: torch.randn(info.shape, generator=values).to(getattr(torch, info.dtype))
        for name, info in plan.tensors.items()
    }
    everybody = list(workers(plan, truth))
    for me, worker in enumerate(everybody):
        move(worker.copies)
        for peer, incoming in worker.shared.incoming.items():
            outgoing, needed = everybody[peer].shared.outgoing[me], worker.shared.needed()
            move(list(zip(outgoing, map(needed.shared, incoming), strict=True)))
    found = Handover(updates=draw.randrange(1 << 20), step=number, data="5eed")
    votes = {f"w{me}": Streamed(worker=f"w{me}", generation=1, ok=True, found=found) for me in range(len(everybody))}
    assert not disagreement(votes, number)
    for rank in range(plan.target.layout.size):
        (after,) = [worker.after for worker in everybody if worker.target == rank]
        wanted = held(plan.target, rank, truth)
        assert all(torch.equal(one, other) for (_, one), (_, other) in zip(wanted, after, strict=True))


def test_some_changes_without_a_defect_are_not_stopped() -> None:
    # LS-12
    for number in range(OFTEN):
        change(number)


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, ALL, AT_ONCE))
def test_none_of_all_changes_without_a_defect_is_stopped(first: int) -> None:
    # LS-12
    for number in range(first, first + AT_ONCE):
        change(number)
