"""Layouts: their text, and the arithmetic between ranks, coordinates, groups and shards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.parallel.layout import EXPERT_ORDER, RANK_ORDER, Axis, Coordinates, Layout


def expert_sizes(layout: Layout) -> list[tuple[int, int]]:
    """Every ep and etp that go with a layout; more of those whose etp is tp."""
    whole = layout.tp * layout.dense_replicas
    found = [(ep, etp) for ep in range(1, 17) for etp in range(1, 9) if whole % (ep * etp) == 0]
    return found + 2 * [(ep, etp) for ep, etp in found if etp == layout.tp]


sizes = st.integers(1, 4)
layouts = (
    st.builds(Layout, sizes, sizes, sizes, sizes)
    .flatmap(
        lambda layout: st.sampled_from(expert_sizes(layout)).map(lambda two: replace(layout, ep=two[0], etp=two[1]))
    )
    .flatmap(lambda layout: st.integers(1, 3 if layout.pp > 1 else 1).map(lambda vpp: replace(layout, vpp=vpp)))
)
axes = st.lists(st.sampled_from(RANK_ORDER), unique=True) | st.lists(st.sampled_from(EXPERT_ORDER), unique=True)


def test_text() -> None:
    assert str(Layout(2, 1, 3)) == "tp2pp1dp3"
    assert Layout.parse(" tp2pp1dp3\n") == Layout(tp=2, pp=1, dp=3) == Layout.parse("tp2cp1pp1dp3")
    assert str(Layout(2, 1, 3, cp=4)) == "tp2cp4pp1dp3"
    assert str(Layout(2, 2, 8, ep=4)) == "tp2pp2ep4dp8"
    assert Layout.parse("tp2cp1pp1ep4dp8") == Layout(tp=2, pp=1, dp=8, ep=4)
    assert Layout.parse("tp1cp2pp1ep4dp2").size == 4, "experts make no world larger"
    assert str(Layout(2, 2, 8, ep=4, vpp=3)) == "tp2pp2vpp3ep4dp8"
    assert Layout.parse("tp2pp2vpp3dp1") == Layout(tp=2, pp=2, dp=1, vpp=3)
    assert Layout.parse("tp2pp2vpp3dp1").size == 4, "nor do chunks"
    assert str(Layout(4, 1, 1, ep=4, etp=1)) == "tp4pp1ep4etp1dp1"
    assert Layout.parse("tp4pp1ep4etp1dp1") == Layout(tp=4, pp=1, dp=1, ep=4, etp=1)
    assert str(Layout(1, 1, 2, etp=2)) == "tp1pp1etp2dp2"


def test_experts_are_cut_as_all_else_is_unless_it_is_said() -> None:
    """So layouts that earlier versions have written are read as they were meant."""
    assert Layout.parse("tp2pp1ep2dp2").etp == 2
    assert Layout.parse("tp2pp1ep2dp2") == Layout.parse("tp2pp1ep2etp2dp2") == Layout(2, 1, 2, ep=2)
    assert str(Layout.parse("tp2pp1ep2etp2dp2")) == "tp2pp1ep2dp2"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tp2",
        "tp2pp1etp1ep2dp1",
        "tp2pp1etp0dp1",
        "tp2dp1pp1",
        "tp0pp1dp1",
        "tp2pp1dp3x",
        "TP2PP1DP3",
        "tp2pp1cp2dp1",
        "tp2cp0pp1dp1",
        "tp2vpp2pp2dp1",
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write one as tp2pp1dp2"):
        Layout.parse(text)


def test_experts_are_divided_over_all_replicas_alike() -> None:
    with pytest.raises(ValueError, match="'tp1pp1ep3dp4' is not a layout: its ep3 does not divide dp4"):
        Layout.parse("tp1pp1ep3dp4")
    with pytest.raises(ValueError, match="its ep4 does not divide cp2 times dp3"):
        Layout.parse("tp1cp2pp1ep4dp3")
    with pytest.raises(
        ValueError, match="'tp2pp1ep4etp1dp3' is not a layout: its ep4 times etp1 does not divide tp2 times dp3"
    ):
        Layout.parse("tp2pp1ep4etp1dp3")
    with pytest.raises(ValueError, match="its ep1 times etp3 does not divide tp2 times cp2 times dp1"):
        Layout.parse("tp2cp2pp1etp3dp1")


def test_chunks_are_those_of_a_pipeline() -> None:
    with pytest.raises(ValueError, match="'tp1pp1vpp2dp4' is not a layout: its vpp2 needs a pp of at least 2"):
        Layout.parse("tp1pp1vpp2dp4")


@given(layouts)
def test_stages_take_turns(layout: Layout) -> None:
    """As megatron-core deals layers out: whoever sends a sample on sends it to the next stage."""
    chunks = [list(layout.chunks(pp)) for pp in range(layout.pp)]
    assert [stage for turn in zip(*chunks, strict=True) for stage in turn] == list(range(layout.virtual_stages))


@given(layouts)
def test_replicas_make_no_shard(layout: Layout) -> None:
    alone = layout.unreplicated
    assert alone.shards() == layout.shards()
    assert alone.replicas == 1
    assert (alone.vpp, alone.size * layout.replicas) == (layout.vpp, layout.size)


@given(layouts)
def test_text_round_trip(layout: Layout) -> None:
    assert Layout.parse(str(layout)) == layout


def test_ranks_are_megatrons() -> None:
    """Order tp, cp, dp, pp from fast to slow, as megatron-core's RankGenerator has it by default."""
    layout = Layout(tp=2, pp=2, dp=3)
    assert [layout.coordinates(rank) for rank in (0, 1, 2, 6, 11)] == [
        Coordinates(tp=0, pp=0, dp=0),
        Coordinates(tp=1, pp=0, dp=0),
        Coordinates(tp=0, pp=0, dp=1),
        Coordinates(tp=0, pp=1, dp=0),
        Coordinates(tp=1, pp=1, dp=2),
    ]
    assert layout.groups("tp").tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert layout.groups("dp").tolist() == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert layout.groups("pp").tolist() == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]
    assert layout.groups("tp", "pp").tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    layout = Layout(tp=2, pp=1, dp=2, cp=2)
    assert layout.groups("cp").tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert layout.groups("dp").tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert layout.replica_groups().tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    layout = replace(layout, ep=2)
    assert layout.groups("ep").tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]], "order tp, ep, dp, pp of experts"
    assert layout.replica_groups().tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert replace(layout, ep=4).groups("ep").tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    layout = replace(layout, etp=1)
    assert layout.groups("ep").tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]], "whole experts, beside each other"
    assert layout.groups("edp").tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]] == layout.replica_groups().tolist()
    layout = Layout(tp=1, pp=1, dp=4, etp=2)
    assert layout.groups("etp").tolist() == [[0, 1], [2, 3]]
    assert (layout.parts, layout.replica_groups().tolist()) == (2, [[0, 2], [1, 3]])
    assert Layout(tp=4, pp=1, dp=3, etp=6).parts == 12, "no two ranks hold the same of both"


@given(layouts)
def test_coordinates_and_rank_are_inverse_and_agree_with_the_matrix(layout: Layout) -> None:
    matrix = layout.rank_matrix()
    assert matrix.size == layout.size
    for rank in range(layout.size):
        place = layout.coordinates(rank)
        assert layout.rank(**place._asdict()) == rank
        assert matrix[tuple(place._asdict()[axis] for axis in RANK_ORDER)] == rank
        assert place == tuple(layout.coordinate(axis, rank) for axis in Coordinates._fields)  # type: ignore[call-overload]


@given(layouts)
def test_coordinate_of_many_ranks(layout: Layout) -> None:
    ranks = np.arange(-1, layout.size)
    for axis in RANK_ORDER:
        found = layout.coordinate(axis, ranks)
        assert found[1:].tolist() == [getattr(layout.coordinates(rank), axis) for rank in range(layout.size)]
        assert 0 <= found[0] < getattr(layout, axis), "a member without a rank"


@given(layouts, axes)
def test_groups_partition_the_ranks(layout: Layout, axes: list[Axis]) -> None:
    groups = layout.groups(*axes)
    assert sorted(groups.reshape(-1).tolist()) == list(range(layout.size))
    for group in groups.tolist():
        assert group == sorted(group)
        order = EXPERT_ORDER if {"ep", "etp", "edp"} & set(axes) else RANK_ORDER
        others = [tuple(layout.coordinate(axis, rank) for axis in order if axis not in axes) for rank in group]
        assert len(set(others)) == 1
        assert all(layout.group(rank, *axes) == group for rank in group)


@given(layouts)
def test_rows_of_replicas_are_the_shards(layout: Layout) -> None:
    assert layout.replica_groups().shape == (len(layout.shards()), layout.replicas)
    for key, row in zip(layout.shards(), layout.replica_groups().tolist(), strict=True):
        assert layout.replica(np.array(row)).tolist() == list(range(layout.replicas))
        for number, rank in enumerate(row):
            assert (layout.shard_key(rank), layout.replica(rank)) == (key, number)
            place = layout.coordinates(rank)
            assert (key[0] % layout.tp, key[1]) == (place.tp, place.pp)
            experts = layout.coordinate("ep", rank) * layout.etp + layout.coordinate("etp", rank)
            assert key[0] % layout.expert_parts == experts
            assert layout.shard_replicas(rank) == row


@given(layouts)
def test_shards_are_as_few_as_there_are_different_ones(layout: Layout) -> None:
    """Two ranks are replicas of one shard if they hold the same experts, and the same of all else."""
    holds = [
        (place.pp, place.tp, layout.coordinate("ep", rank), layout.coordinate("etp", rank))
        for rank, place in ((rank, layout.coordinates(rank)) for rank in range(layout.size))
    ]
    assert len(set(holds)) == len(layout.shards())


@given(layouts)
def test_experts_have_their_own_microbatches_only_within_a_replica(layout: Layout) -> None:
    together = layout.groups("ep", "etp")
    assert layout.experts_need_microbatches == any(
        len({layout.coordinates(rank).dp for rank in row}) > 1 for row in together.tolist()
    )
