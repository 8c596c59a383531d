"""Who keeps whose mirror, and whose state only a mirror has."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.mirrors import Extent, keepers, needs_mirrors, without_holder

small = st.integers(1, 3)
layouts = st.builds(Layout, small, small, small, small).flatmap(
    lambda layout: st.sampled_from(
        [(1, layout.tp), (layout.dp, layout.tp), (layout.dense_replicas, layout.tp), (1, 1), (layout.tp, 1)]
    ).map(lambda two: replace(layout, ep=two[0], etp=two[1]))
)


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=2, max_size=9))
def test_each_rank_keeps_one_mirror_of_another(hosts: list[str]) -> None:
    found = keepers(hosts)
    assert sorted(found) == list(range(len(hosts)))
    assert all(rank != keeper for rank, keeper in enumerate(found))


@given(st.integers(2, 5), st.integers(1, 4))
def test_mirrors_lie_on_another_host_where_there_are_several(hosts: int, ranks: int) -> None:
    names = [f"n{host}" for host in range(hosts) for _ in range(ranks)]
    assert all(names[rank] != names[keeper] for rank, keeper in enumerate(keepers(names)))


def test_on_one_host_neighbours_keep_each_other() -> None:
    assert keepers(["a"] * 4) == [1, 2, 3, 0]


@given(layouts, st.booleans(), st.data())
def test_who_is_lost_without_a_holder_needed_a_mirror(layout: Layout, distributed: bool, data: st.DataObject) -> None:
    lost = data.draw(st.sets(st.integers(0, layout.size - 1)))
    alone = without_holder(layout, lost, distributed)
    assert set(alone) <= lost
    if distributed:
        assert set(alone) == lost
    for rank in lost - set(alone):
        assert set(layout.group(rank, "edp")) - lost, "a replica is left"
    if len(lost) == 1 and alone and layout.size > 1:
        assert needs_mirrors(layout, distributed)


def test_a_mirror_reaches_its_step_and_perhaps_the_next() -> None:
    assert [Extent(4, True).reaches(step) for step in (3, 4, 5, 6)] == [False, True, True, False]
    assert [Extent(4, False).reaches(step) for step in (3, 4, 5)] == [False, True, False]
    assert not Extent(-1, True).reaches(0)
