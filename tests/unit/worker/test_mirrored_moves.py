"""Moves between workers of which some stand in for others that are gone: both ends of a pair have them in one order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import Model

from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.protocol.messages import Prepare
from liver_slurm.reshard.plan import TransferPlan, plan_transfer
from liver_slurm.reshard.shard_spec import WorldSpec
from liver_slurm.reshard.tensors import Move
from liver_slurm.worker.state_transfer import TransferEndpoints, _all_moves

small = st.integers(1, 3)


@st.composite
def broken_worlds(draw: st.DrawFn) -> tuple[TransferPlan, dict[str, TransferEndpoints]]:
    """A plan from a world that has lost some ranks, with mirrors of all of those, and each worker's ends."""
    model = Model(3, draw(st.booleans()), draw(st.sampled_from(["float32", "bfloat16"])), draw(st.booleans()))
    source = Layout(draw(small), draw(small), draw(small))
    members = [f"w{rank}" for rank in range(source.size)]
    lost = draw(st.sets(st.sampled_from(members), max_size=len(members) - 1))
    left = [name for name in members if name not in lost]
    mirrors = {name: draw(st.sampled_from(left)) for name in sorted(lost)}
    target = Layout(draw(small), draw(small), draw(small))
    pool = draw(st.permutations([*left, *(f"j{number}" for number in range(target.size))]))
    message = Prepare(
        epoch=1,
        generation=4,
        layout=str(target),
        members=pool[: target.size],
        source_generation=3,
        source_layout=str(source),
        source_members=members,
        store_host="h",
        store_port=1,
        lost=sorted(lost),
        mirrors=mirrors,
        step=7,
    )
    world = Membership(4, target, tuple(message.members))
    ends = {
        name: TransferEndpoints(message, name, None, world, None) for name in dict.fromkeys((*left, *message.members))
    }
    distributed = draw(st.booleans())
    worlds = [model.world(layout, distributed) for layout in (source, target)]
    specs = [WorldSpec(each.layout, each.shards, distributed, each.precision, derived=True) for each in worlds]
    return plan_transfer(*specs, next(iter(ends.values())).peers.keep), ends


def _pieces(moves: list[Move]) -> list[tuple[Any, ...]]:
    return [(move.tensor, move.offset, move.shape) for move in moves]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(broken_worlds())
def test_both_ends_of_a_pair_have_the_same_moves_in_one_order(
    broken: tuple[TransferPlan, dict[str, TransferEndpoints]],
) -> None:
    # LS-3, LS-34
    plan, ends = broken
    moves = {name: _all_moves(plan, end) for name, end in ends.items()}
    for receiver, end in ends.items():
        peers = end.peers
        for sender in ends:
            number = peers.names.index(sender)
            arrives = [move for move in moves[receiver].receives if peers.source[move.source_rank] == number]
            leaves = [move for move in moves[sender].sends if end.target.members[move.target_rank] == receiver]
            assert _pieces(arrives) == _pieces(leaves)
        assert not any(peers.source[move.source_rank] == end.me for move in moves[receiver].receives)
        if end.target_rank is not None:
            planned = plan.moves_for(end.source_rank, end.target_rank)
            expected = [*planned.receives, *planned.copies]
            found = [*moves[receiver].receives, *moves[receiver].copies]
            assert sorted(_pieces(found)) == sorted(_pieces(expected)), "all that it needs, once"


def test_nothing_changes_where_nobody_is_lost() -> None:
    plan = SimpleNamespace(moves_for=lambda source, target: (source, target))
    end: Any = SimpleNamespace(mirrors={}, source_rank=1, target_rank=2)
    assert _all_moves(plan, end) == (1, 2)  # type: ignore[arg-type, comparison-overlap]
