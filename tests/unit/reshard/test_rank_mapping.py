"""Which rank each member of a target world gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import Model

from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.lower_bound import remote_minimum
from liver_slurm.reshard.plan import default_keep
from liver_slurm.reshard.rank_mapping import Depth, number

Kept = list["int | None"]
layouts = st.builds(
    Layout, st.sampled_from([1, 2, 4]), st.integers(1, 4), st.integers(1, 5), vpp=st.sampled_from([1, 1, 2, 4])
)


def even(source: Layout, target: Layout, cut: bool) -> Depth:
    """A model of 24 equal layers, bf16."""
    return Depth(
        *(
            [24.0 * stage / layout.virtual_stages for stage in range(layout.virtual_stages + 1)]
            for layout in (source, target)
        ),
        2,
        12,
        cut,
    )


@st.composite
def resizes(draw: st.DrawFn) -> tuple[Layout, Layout, Kept]:
    """Survivors in the order of their ranks, then joiners."""
    source, target = draw(layouts), draw(layouts)
    staying = draw(st.integers(0, min(source.size, target.size)))
    kept: Kept = sorted(draw(st.permutations(range(source.size)))[:staying])
    return source, target, [*kept, *[None] * (target.size - staying)]


def spread(hosts: list[str], tp: int) -> int:
    return sum(len(set(hosts[first : first + tp])) for first in range(0, len(hosts), tp))


@settings(max_examples=200, deadline=None)
@given(resizes(), st.booleans(), st.data())
def test_order_is_a_permutation_on_no_more_hosts(case: Any, cut: bool, data: st.DataObject) -> None:
    source, target, kept = case
    hosts = [data.draw(st.sampled_from("abcd")) for _ in kept]
    order, reason = number(source, target, kept, hosts, even(source, target, cut))
    assert sorted(order) == list(range(target.size))
    assert spread([hosts[member] for member in order], target.tp) <= spread(hosts, target.tp)
    assert reason


@settings(max_examples=60, deadline=None)
@given(resizes(), st.booleans(), st.sampled_from(["float32", "bfloat16"]))
def test_no_more_bytes_move_than_in_the_plain_order(case: Any, cut: bool, dtype: str) -> None:
    """Told by the pieces of real worlds, of which the numbering sees stages only."""
    source, target, kept = case
    model = Model(8, False, dtype, False, scale=16)
    worlds = model.world(source, cut), model.world(target, cut)
    order, _ = number(source, target, kept, ["h"] * target.size, Depth.between(*worlds))
    assert remote_minimum(*worlds, [kept[member] for member in order]) <= remote_minimum(*worlds, kept)


@pytest.mark.parametrize(
    ("source", "target", "cut", "ranks"),
    [
        # Each survivor stays on its stage; with a distributed optimizer also at its part of the stage.
        ("tp1pp2dp2", "tp1pp2dp4", False, [0, 1, None, None, 2, 3, None, None]),
        ("tp1pp2dp2", "tp1pp2dp4", True, [0, None, 1, None, 2, None, 3, None]),
        # Replicas are alike: nothing is better than the plain order.
        ("tp1pp1dp2", "tp1pp1dp4", False, [0, 1, None, None]),
        ("tp1pp1dp4", "tp1pp1dp2", False, [0, 1]),
        ("tp2pp2dp2", "tp2pp2dp2", True, [0, 1, 2, 3, 4, 5, 6, 7]),
        # A stage of two chunks has the first and the third quarter of the model, or the second and the fourth.
        ("tp1pp2dp1", "tp1pp4dp1", False, [0, None, 1, None]),
        ("tp1pp2vpp2dp1", "tp1pp4dp1", False, [0, 1, None, None]),
        ("tp1pp4dp1", "tp1pp2vpp2dp1", False, [0, 1]),
        ("tp1pp4dp1", "tp1pp2vpp2dp1", True, [0, 1]),
        # A quarter of the matrices lies in the half that its holder needs.
        ("tp4pp1dp1", "tp2pp1dp2", False, [0, 2, 1, 3]),
        ("tp2pp1dp2", "tp4pp1dp1", False, [0, 2, 1, 3]),
    ],
)
def test_survivors_keep_what_they_can(source: str, target: str, cut: bool, ranks: Kept) -> None:
    before, after = Layout.parse(source), Layout.parse(target)
    kept = default_keep(before.size, after.size)
    order, _ = number(before, after, kept, ["h"] * after.size, even(before, after, cut))
    assert [kept[member] for member in order] == ranks


def test_a_joiner_takes_the_place_of_one_that_leaves() -> None:
    layout = Layout(2, 2, 1)
    kept: Kept = [0, 2, 3, None]
    order, reason = number(layout, layout, kept, ["h"] * 4, even(layout, layout, True))
    assert [kept[member] for member in order] == [0, None, 2, 3]
    assert reason == "workers keep 75% of the state instead of 25%"


def test_tensor_parallel_groups_stay_on_a_host() -> None:
    """Survivors on hosts a and b, a joiner on each: no group of the target is on both."""
    source, target = Layout(1, 1, 4), Layout(2, 1, 3)
    kept: Kept = [0, 1, 2, 3, None, None]
    hosts = ["a", "a", "a", "b", "b", "a"]
    order, reason = number(source, target, kept, hosts, even(source, target, True))
    assert spread([hosts[member] for member in order], 2) == 3
    assert reason == "tensor parallel groups on fewer hosts (3 instead of 5)"


def test_hosts_do_not_matter_where_no_group_can_be_on_fewer() -> None:
    """A worker on each host, or groups of one worker."""
    source, target = Layout(4, 1, 1), Layout(2, 1, 2)
    order, _ = number(source, target, [0, 1, 2, 3], ["a", "b", "c", "d"], even(source, target, True))
    assert order == [0, 2, 1, 3]
    source, target = Layout(1, 2, 2), Layout(1, 2, 1)
    order, _ = number(source, target, [3, 1], ["a", "b"], even(source, target, True))
    assert order == [1, 0]


@pytest.mark.parametrize("target", ["tp8pp16dp120", "tp16pp8dp120", "tp4pp20dp192", "tp1pp1dp15360"])
@pytest.mark.parametrize("cut", [True, False])
def test_sixteen_thousand_ranks_lose_whole_nodes(target: str, cut: bool) -> None:
    source, after = Layout(8, 16, 128), Layout.parse(target)
    nodes = np.sort(np.random.default_rng(1).permutation(2048)[:1920])
    kept: Kept = [int(node) * 8 + gpu for node in nodes for gpu in range(8)]
    hosts = [str(rank // 8 if rank is not None else None) for rank in kept]
    depth = even(source, after, cut)
    order, reason = number(source, after, kept, hosts, depth)
    assert sorted(order) == list(range(after.size))
    assert spread([hosts[member] for member in order], after.tp) == max(1920, after.size // after.tp)
    assert target == "tp1pp1dp15360" or "instead of" in reason
