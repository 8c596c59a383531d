from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.chunks import Chunk, pack, schedule
from liver_slurm.reshard.plan import RankMoves, plan_transfer
from liver_slurm.reshard.shard_spec import BoxSpec, ParamSpec, ShardSpec, WorldSpec
from liver_slurm.reshard.tensors import Move, TensorInfo

TENSORS = {"a": TensorInfo("a", (9, 8, 7), "float32"), "b": TensorInfo("b", (40,), "bfloat16")}


@st.composite
def moves(draw: st.DrawFn) -> list[Move]:
    found = []
    for name in draw(st.lists(st.sampled_from(sorted(TENSORS)), max_size=6)):
        bounds = [sorted(draw(st.sets(st.integers(0, n), min_size=2, max_size=2))) for n in TENSORS[name].shape]
        found.append(Move(name, 1, 0, tuple(a for a, _ in bounds), tuple(b - a for a, b in bounds)))
    return found


def elements(parts: list[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> list[tuple[str, int]]:
    """Every element of the boxes in the order in which they are listed."""
    found: list[tuple[str, int]] = []
    for tensor, offset, shape in parts:
        whole = np.arange(math.prod(TENSORS[tensor].shape)).reshape(TENSORS[tensor].shape)
        box = tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))
        found += [(tensor, int(number)) for number in whole[box].ravel()]
    return found


@given(moves(), st.integers(1, 3000))
def test_chunks_carry_every_element_in_order_within_the_limit(given_moves: list[Move], limit: int) -> None:
    chunks = list(pack(given_moves, TENSORS, limit))
    parts = [tuple(part) for chunk in chunks for part in chunk.parts]
    assert elements(parts) == elements([(m.tensor, m.offset, m.shape) for m in given_moves])
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        assert chunk.parts
        assert chunk.nbytes <= max(limit, 4)
        itemsize = {"a": 4, "b": 2}
        assert chunk.nbytes == sum(math.prod(part.shape) * itemsize[part.tensor] for part in chunk.parts)


@given(moves(), moves(), st.integers(1, 3000))
def test_a_large_move_is_cut_alike_whatever_comes_before_and_after(
    before: list[Move], after: list[Move], limit: int
) -> None:
    large = Move("a", 1, 0, (0, 0, 0), (9, 8, 7))
    alone = [chunk.parts for chunk in pack([large], TENSORS, min(limit, 4 * 9 * 8 * 7))]
    among = [chunk.parts for chunk in pack([*before, large, *after], TENSORS, min(limit, 4 * 9 * 8 * 7))]
    assert any(among[at : at + len(alone)] == alone for at in range(len(among)))


def test_rows_are_kept_whole_where_they_fit() -> None:
    chunks = list(pack([Move("a", 0, 1, (0, 0, 0), (9, 8, 7))], TENSORS, 4 * 8 * 7 * 2 + 4))
    assert [[part.shape for part in chunk.parts] for chunk in chunks] == [[(2, 8, 7)]] * 4 + [[(1, 8, 7)]]


def replicas(layout: Layout) -> WorldSpec:
    rows = 48 // layout.tp
    shards = {
        (tp, 0): ShardSpec(
            (ParamSpec("w", rows * 8, "float32", (BoxSpec("w", (48, 8), (tp * rows, 0), (rows, 8), 0),)),)
        )
        for tp in range(layout.tp)
    }
    return WorldSpec(layout, shards, True, "fp32")


@pytest.mark.parametrize(("source", "target"), [("tp2pp1dp3", "tp3pp1dp4"), ("tp1pp1dp8", "tp4pp1dp1")])
def test_workers_that_handle_one_chunk_at_a_time_never_wait_in_a_circle(source: str, target: str) -> None:
    worlds = replicas(Layout.parse(source)), replicas(Layout.parse(target))
    size = max(world.layout.size for world in worlds)
    plan = plan_transfer(*worlds)
    queues: list[list[Chunk]] = []
    for worker in range(size):
        ranks = [worker if worker < world.layout.size else None for world in worlds]
        queues.append(schedule(plan.moves_for(*ranks), plan.tensors, 64, size))
    total = sum(map(len, queues))
    assert total > 0
    rounds = 0
    while any(queues):
        # What a worker wants next goes through when its other end wants the same.
        ready = {queue[0] for queue in queues if queue}
        done = [c for c in ready if queues[c.source_rank][:1] == [c] and queues[c.target_rank][:1] == [c]]
        assert done, "all wait"
        for chunk in done:
            queues[chunk.source_rank].pop(0)
            queues[chunk.target_rank].pop(0)
        rounds += 1
    assert rounds < total  # many at a time


def test_a_round_has_one_chunk_out_and_one_in_for_each_rank() -> None:
    plan = plan_transfer(replicas(Layout(1, 1, 4)), replicas(Layout(2, 1, 4)))
    out: Counter[tuple[int, int, int]] = Counter()
    into: Counter[tuple[int, int, int]] = Counter()
    for rank in range(8):
        mine = plan.moves_for(rank if rank < 4 else None, rank)
        for chunk in schedule(mine, plan.tensors, 64, 8):
            if chunk.source_rank == rank:
                distance = (chunk.target_rank - chunk.source_rank) % 8
                out[chunk.index, distance, chunk.source_rank] += 1
                into[chunk.index, distance, chunk.target_rank] += 1
    assert set(out.values()) == {1}
    assert set(into.values()) == {1}


def test_nothing_to_do() -> None:
    assert schedule(RankMoves([], [], []), TENSORS, 100, 4) == []
