"""Properties of transfer plans over random small worlds.

Where a plan is judged by its balance, a rank's load is the bytes that it sends to other workers, and the mean is over
the ranks that send or could: those that hold the same region, which some other worker must be sent.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import WIDTH, Model

from liver_slurm.base.errors import PlanError
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard import sender_assignment
from liver_slurm.reshard.lower_bound import remote_minimum
from liver_slurm.reshard.plan import TransferPlan, plan_transfer
from liver_slurm.reshard.shard_spec import BoxSpec, ParamSpec, ShardSpec, WorldSpec, pieces
from liver_slurm.reshard.tensors import ITEMSIZE, Box, Move


@pytest.fixture(scope="module", autouse=True)
def _small_stripes() -> Iterator[None]:
    """These models are as small beside a stripe as large ones are large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sender_assignment, "_STRIPE", 64)
        yield


@st.composite
def worlds(draw: st.DrawFn, model: Model) -> WorldSpec:
    layout = Layout(*(draw(st.integers(1, 4)) for _ in range(3)), cp=draw(st.integers(1, 2)))
    layout = replace(layout, vpp=draw(st.integers(1, 3)) if layout.pp > 1 else 1)
    if model.experts:
        layout = replace(layout, etp=draw(st.sampled_from([layout.tp, 1, 2, 3, 4, 6])))
        parts = [ep for ep in (1, 2, 3, 4) if not replace(layout, ep=ep).uneven_experts and model.experts % ep == 0]
        layout = replace(layout, ep=draw(st.sampled_from(parts))) if parts else replace(layout, etp=0)
    distributed = draw(st.booleans())
    return model.world(layout, distributed, draw(st.sampled_from([None, 200, 700])))


@st.composite
def transfers(draw: st.DrawFn) -> tuple[WorldSpec, WorldSpec, list[int | None]]:
    dtype, experts = draw(st.sampled_from(["float32", "bfloat16"])), draw(st.sampled_from([0, 4, 6]))
    model = Model(4, draw(st.booleans()), dtype, draw(st.booleans()), experts=experts)
    derived = draw(st.booleans())
    source, target = (replace(draw(worlds(model)), derived=derived) for _ in range(2))
    staying = draw(st.permutations(range(source.layout.size)))
    slots: list[int | None] = [*staying, *[None] * target.layout.size]
    joiners = draw(st.integers(0, target.layout.size))
    keep = draw(st.permutations([*slots[: target.layout.size - joiners], *[None] * joiners]))[: target.layout.size]
    return source, target, list(keep)


few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def box(move_or_piece: Any) -> tuple[slice, ...]:
    return tuple(slice(a, a + n) for a, n in zip(move_or_piece.offset, move_or_piece.shape, strict=True))


def whole_state(world: WorldSpec) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.integers(1, 1 << 32, info.shape, np.uint32) for name, info in world.tensors.items()}


def hold(world: WorldSpec, state: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """What each rank holds, in arrays of the whole tensors' shapes; zero is what it does not hold."""
    ranks = []
    for rank in range(world.layout.size):
        held = {name: np.zeros_like(array) for name, array in state.items()}
        for piece in pieces(world, rank):
            held[piece.tensor][box(piece)] = state[piece.tensor][box(piece)]
        ranks.append(held)
    return ranks


def transfer(plan: TransferPlan, source: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Carry out all moves; every element may arrive once only, and must be there to be sent."""
    target = [{n: np.zeros_like(a) for n, a in source[0].items()} for _ in range(plan.target.layout.size)]
    for move in plan.moves():
        place, values = (
            target[move.target_rank][move.tensor][box(move)],
            source[move.source_rank][move.tensor][box(move)],
        )
        assert not place.any(), f"arrives twice: {move}"
        assert values.all(), f"is not there to be sent: {move}"
        place[...] = values
    return target


def intersect(offset: Box, shape: Box, other_offset: Box, other_shape: Box) -> tuple[Box, Box] | None:
    """The box that both boxes cover, as (offset, shape); None where there is none."""
    start = tuple(map(max, offset, other_offset))
    end = tuple(min(a + n, b + m) for a, n, b, m in zip(offset, shape, other_offset, other_shape, strict=True))
    if any(a >= b for a, b in zip(start, end, strict=True)):
        return None
    return start, tuple(b - a for a, b in zip(start, end, strict=True))


def remote(plan: TransferPlan, moves: list[Move]) -> list[Move]:
    return [move for move in moves if plan.keep[move.target_rank] != move.source_rank]


def nbytes(plan: TransferPlan, move: Move) -> int:
    return int(np.prod(move.shape)) * ITEMSIZE[plan.tensors[move.tensor].dtype]


@few
@given(transfers())
def test_every_target_box_arrives_once_and_bitwise_there_and_back(case: Any) -> None:
    # LS-3
    source, target, keep = case
    state = whole_state(source)
    arrived = transfer(plan_transfer(source, target, keep), hold(source, state))
    for wanted, found in zip(hold(target, state), arrived, strict=True):
        for name in state:
            assert np.array_equal(wanted[name], found[name]), name
    places = {rank: place for place, rank in enumerate(keep) if rank is not None}
    back = [places.get(rank) for rank in range(source.layout.size)]
    returned = transfer(plan_transfer(target, source, back), arrived)
    for wanted, found in zip(hold(source, state), returned, strict=True):
        for name in state:
            assert np.array_equal(wanted[name], found[name]), name


@st.composite
def transfers_with_losses(draw: st.DrawFn) -> tuple[WorldSpec, WorldSpec, list[int | None]]:
    """Ranks of the source world are lost, but of every shard one replica is left; some of them go on."""
    source, target, _ = draw(transfers())
    source = replace(source, distributed_optimizer=False)
    layout = source.layout
    left = {draw(st.sampled_from(replicas)) for replicas in layout.replica_groups().tolist()}
    lost = draw(st.sets(st.sampled_from(range(layout.size)))) - left
    survivors: list[int | None] = [rank for rank in range(layout.size) if rank not in lost]
    keep = draw(st.permutations([*survivors, *[None] * target.layout.size]))[: target.layout.size]
    return replace(source, lost=frozenset(lost)), target, list(keep)


@few
@given(transfers_with_losses())
def test_replicas_stand_in_for_ranks_that_are_lost(case: Any) -> None:
    # LS-34
    source, target, keep = case
    state = whole_state(source)
    plan = plan_transfer(source, target, keep)
    assert not source.lost & {move.source_rank for move in plan.moves()}
    for wanted, found in zip(hold(target, state), transfer(plan, hold(source, state)), strict=True):
        for name in state:
            assert np.array_equal(wanted[name], found[name]), name


@pytest.mark.parametrize(("distributed", "lost"), [(True, {0}), (False, {0, 2})])
def test_a_box_that_only_lost_ranks_held_is_named(distributed: bool, lost: set[int]) -> None:
    model = Model(4, True, "float32", False)
    source = replace(model.world(Layout(2, 1, 2), distributed), lost=frozenset(lost))
    with pytest.raises(PlanError, match="no rank that is left of tp2pp1dp2 holds the box at"):
        plan_transfer(source, model.world(Layout(1, 1, 2), distributed), [1, 3])


def missing(source: WorldSpec, target: WorldSpec, keep: list[int | None]) -> int:
    """Bytes that workers need and do not hold, element by element."""
    count = 0
    for target_rank, source_rank in enumerate(keep):
        held = {name: np.zeros(info.shape, bool) for name, info in source.tensors.items()}
        for piece in [] if source_rank is None else pieces(source, source_rank):
            held[piece.tensor][box(piece)] = True
        for piece in pieces(target, target_rank):
            count += int((~held[piece.tensor][box(piece)]).sum()) * ITEMSIZE[target.tensors[piece.tensor].dtype]
    return count


@few
@given(transfers())
def test_remote_bytes_are_the_minimum(case: Any) -> None:
    plan = plan_transfer(*case)
    moves = list(plan.moves())
    sent = sum(nbytes(plan, move) for move in remote(plan, moves))
    assert sent == plan.bytes_remote == remote_minimum(*case) == missing(*case)
    assert sum(nbytes(plan, move) for move in moves) == plan.bytes_total


@few
@given(transfers())
def test_no_sender_could_be_relieved(case: Any) -> None:
    """At the optimum, and only there, whoever could send a move instead of its sender sends as much already."""
    plan = plan_transfer(*case)
    moves = remote(plan, list(plan.moves()))
    load: Counter[int] = Counter()
    for move in moves:
        load[move.source_rank] += nbytes(plan, move)
    holders = defaultdict(list)
    for rank in range(plan.source.layout.size):
        for piece in pieces(plan.source, rank):
            holders[piece.tensor].append((rank, piece))
    # Cuts move to whole units (an element of all optimizer state, 12 bytes), one for each part that a rank serves.
    slack = Counter({rank: 12 * parts for rank, parts in Counter(plan._service.sender.tolist()).items()})
    for move in moves:
        for rank, piece in holders[move.tensor]:
            overlap = intersect(move.offset, move.shape, piece.offset, piece.shape)
            if overlap is not None:
                assert load[rank] >= load[move.source_rank] - slack[rank] - slack[move.source_rank]
    for rank, sent in enumerate(plan.send_bytes.tolist()):
        assert abs(sent - load[rank]) <= slack[rank]
    assert set(load) <= set(plan.senders.tolist())


@few
@given(transfers())
def test_a_worker_finds_its_own_moves_alone(case: Any) -> None:
    source, target, keep = case
    everything = list(plan_transfer(source, target, keep).moves())
    workers = [(rank, keep.index(rank) if rank in keep else None) for rank in range(source.layout.size)]
    workers += [(None, rank) for rank, kept in enumerate(keep) if kept is None]
    found: list[Move] = []
    pairs: dict[tuple[int, int], list[list[Move]]] = defaultdict(lambda: [[], []])
    for source_rank, target_rank in workers:
        plan = plan_transfer(source, target, keep)
        mine = plan.moves_for(source_rank, target_rank)
        found += mine.receives + mine.copies
        assert all(move.source_rank == source_rank for move in (*mine.sends, *mine.copies))
        assert all(move.target_rank == target_rank for move in (*mine.receives, *mine.copies))
        for side, moves in enumerate((mine.sends, mine.receives)):
            for move in moves:
                pairs[move.source_rank, move.target_rank][side].append(move)
    assert sorted(found) == sorted(everything)
    assert all(sent == received for sent, received in pairs.values())


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("tp1pp1dp4", "tp1pp1dp7"),
        ("tp2pp1dp3", "tp1pp1dp8"),
        ("tp2pp2dp4", "tp4pp4dp4"),
        ("tp1pp2dp4", "tp2pp1dp12"),
    ],
)
def test_hottest_sender_is_near_the_mean_where_replicas_leave_a_choice(
    source: str, target: str, distributed: bool
) -> None:
    """All workers of the target world are new, so nothing is local and every replica can take its part."""
    model = Model(4, True, "bfloat16", False)
    worlds = [model.world(Layout.parse(text), distributed) for text in (source, target)]
    plan = plan_transfer(*worlds, [None] * worlds[1].layout.size)
    assert plan.max_send_over_mean <= 1.1
    if not distributed:
        sent = plan.send_bytes[plan.senders]
        within_a_stage = sent.reshape(worlds[0].layout.pp, -1)
        assert (within_a_stage.max(axis=1) <= 1.1 * within_a_stage.mean(axis=1)).all()


def test_survivors_that_keep_their_place_copy_locally() -> None:
    world = Model(2, False, "float32", False).world(Layout(2, 2, 2), True)
    plan = plan_transfer(world, world)
    assert plan.bytes_remote == 0
    assert plan.max_send_over_mean == 1.0
    assert all(move.source_rank == move.target_rank for move in plan.moves())


def test_moves_are_ordered_by_layer() -> None:
    model = Model(4, True, "float32", False)
    plan = plan_transfer(model.world(Layout(2, 1, 2), True), model.world(Layout(1, 2, 2), True))
    for rank in range(4):
        moves = plan.moves_for(rank, rank)
        for part in (moves.receives, moves.copies):
            layers = [move.offset[0] if plan.tensors[move.tensor].layered else -1 for move in part]
            assert layers == sorted(layers)


@few
@given(transfers(), st.data())
def test_places_change_who_sends_and_nothing_else(case: Any, data: st.DataObject) -> None:
    source, target, keep = case
    place = st.tuples(st.sampled_from("rs"), st.sampled_from("hij"))
    before = [data.draw(place) for _ in range(source.layout.size)]
    after = [data.draw(place) if rank is None else before[rank] for rank in keep]
    plain, near = plan_transfer(*case), plan_transfer(*case, places=(before, after))
    state = whole_state(source)
    arrived = transfer(near, hold(source, state))
    for wanted, found in zip(hold(target, state), arrived, strict=True):
        assert all(np.array_equal(wanted[name], found[name]) for name in state)
    assert near.send_bytes.tolist() == plain.send_bytes.tolist()
    assert near.bytes_remote == plain.bytes_remote
    everything = remote(near, list(near.moves()))
    for source_rank in range(source.layout.size):
        own = keep.index(source_rank) if source_rank in keep else None
        sends = sorted(near.moves_for(source_rank, own).sends)
        assert sends == sorted(move for move in everything if move.source_rank == source_rank)


def test_sources_are_near_where_replicas_leave_a_choice() -> None:
    """Three replicas, each in a rack or on a host of its own, serve six joiners: two bytes in three stay near."""
    model = Model(4, False, "bfloat16", False)
    worlds = [model.world(Layout(1, 1, dp), False) for dp in (3, 6)]
    before = [("r", "a"), ("r", "b"), ("s", "c")]
    after = [("s", "d"), ("s", "c"), ("r", "b"), ("r", "e"), ("r", "b"), ("r", "a")]
    plan = plan_transfer(*worlds, [None] * 6, (before, after))
    pairs: dict[tuple[str, str], set[int]] = {}
    for move in plan.moves():
        pairs.setdefault((before[move.source_rank][1], after[move.target_rank][1]), set()).add(move.target_rank)
    assert pairs == {("c", "c"): {1}, ("b", "b"): {2, 4}, ("a", "a"): {5}, ("c", "d"): {0}, ("a", "e"): {3}}


@pytest.mark.parametrize(("replicas", "joiners", "serving"), [(2, 2, 2), (2, 9, 2), (8, 8, 4), (4, 1, 4), (1, 3, 1)])
def test_each_replica_sends_the_same_boxes_to_all_that_it_serves(replicas: int, joiners: int, serving: int) -> None:
    model = Model(4, False, "float32", False)
    plan = plan_transfer(*(model.world(Layout(1, 1, dp), False) for dp in (replicas, joiners)), [None] * joiners)
    boxes: dict[int, dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for move in plan.moves():
        boxes[move.source_rank][move.target_rank].append((move.tensor, move.offset, move.shape))
    assert len(boxes) == replicas
    for peers in boxes.values():
        assert len({tuple(sent) for sent in peers.values()}) == 1
    for joiner in range(joiners):
        assert sum(joiner in peers for peers in boxes.values()) == serving


def test_places_must_be_known_of_all() -> None:
    world = Model(1, True, "float32", False).world(Layout(1, 1, 2), False)
    with pytest.raises(PlanError, match="places must be given for all ranks"):
        plan_transfer(world, world, places=([("a",)], [("a",), ("b",)]))
    with pytest.raises(PlanError, match="all alike"):
        plan_transfer(world, world, places=([("a",), ("r", "a")], [("a",), ("b",)]))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([0], "has 1 entries, but the target world has 2 ranks"),
        ([0, 0], "names source rank 0 twice"),
        ([0, 2], "names source rank 2, but the source world's ranks are 0 to 1"),
        ([0, -1], "names source rank -1"),
    ],
)
def test_bad_keep(keep: list[int | None], message: str) -> None:
    world = Model(1, True, "float32", False).world(Layout(1, 1, 2), False)
    with pytest.raises(PlanError, match=message):
        plan_transfer(world, world, keep)


def test_worlds_of_different_models_are_refused() -> None:
    layout = Layout(1, 1, 1)
    source = Model(1, True, "float32", False).world(layout, False)
    with pytest.raises(PlanError, match="is only in the target world's state"):
        plan_transfer(source, Model(1, False, "float32", False).world(layout, False))
    with pytest.raises(PlanError, match="in the source world and"):
        plan_transfer(source, Model(2, True, "float32", False).world(layout, False))
    with pytest.raises(PlanError, match="bfloat16"):
        plan_transfer(Model(1, True, "bfloat16", False).world(layout, False), source)


def test_state_that_is_nowhere_is_refused() -> None:
    model = Model(2, True, "float32", False)
    source, target = model.world(Layout(1, 2, 1), False), model.world(Layout(1, 1, 1), False)
    cut = source.shards[0, 1].params[1:]
    holed = WorldSpec(source.layout, {**source.shards, (0, 1): ShardSpec(cut)}, False, "fp32")
    with pytest.raises(PlanError, match="up: the source world holds 0 of the"):
        plan_transfer(holed, target)


def test_replicas_that_are_cut_differently_are_joined() -> None:
    """Own buckets make a shared embedding be cut alike on both stages; without them each stage cuts it its own way."""
    model = Model(3, True, "float32", False)
    source = model.world(Layout(1, 2, 3), True)
    shards = {
        place: ShardSpec(tuple(ParamSpec(p.name, p.size, p.dtype, p.boxes, p.group, False) for p in shard.params))
        for place, shard in source.shards.items()
    }
    source = WorldSpec(source.layout, shards, True, "fp32")
    first, last = ([p for p in pieces(source, rank) if p.tensor == "embedding@exp_avg"] for rank in (0, 3))
    assert first != last
    state = whole_state(source)
    target = model.world(Layout(2, 1, 4), True)
    arrived = transfer(plan_transfer(source, target), hold(source, state))
    for wanted, found in zip(hold(target, state), arrived, strict=True):
        assert all(np.array_equal(wanted[name], found[name]) for name in state)


def test_overlapping_boxes_are_refused() -> None:
    model = Model(1, True, "float32", False)
    source = model.world(Layout(1, 1, 1), False)
    odd = BoxSpec("last", (WIDTH,), (0,), (WIDTH - 1,), 0)
    shard = ShardSpec((*source.shards[0, 0].params, ParamSpec("odd", WIDTH - 1, "float32", (odd,))))
    with pytest.raises(PlanError, match="last: shards of tp1pp1dp1 hold boxes that overlap"):
        plan_transfer(WorldSpec(source.layout, {(0, 0): shard}, False, "fp32"), source)
