from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.reshard import load_balance
from liver_slurm.reshard.rank_sets import RankSets


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 400))
def test_fill_is_level(load: list[int], amount: int) -> None:
    poured = load_balance.fill(np.array(load, dtype=np.int64), amount)
    after = np.array(load) + poured
    assert poured.sum() == amount
    assert (poured >= 0).all()
    assert after[poured > 0].max(initial=0) <= after.min() + 1


def test_fixed_loads_are_filled_around() -> None:
    owners = RankSets.of([[0], [0, 1]])
    part, load = load_balance.shares(owners, np.array([100, 60]), 3)
    assert load.tolist() == [100, 60, 0]
    assert part.tolist() == [100, 0, 60]


def test_overlapping_owner_sets_even_each_other_out() -> None:
    """Rank 2 takes all that it can of what it shares with 1; the other 150 bytes spread over ranks 0, 1 and 3."""
    owners = RankSets.of([[0, 1], [1, 2], [0, 3]])
    part, load = load_balance.shares(owners, np.array([90, 30, 60]), 4)
    assert load.tolist() == [50, 50, 30, 50]
    assert part.reshape(3, 2).sum(axis=1).tolist() == [90, 30, 60]


def test_what_is_uneven_is_told() -> None:
    owners = RankSets.of([[0, 1], [2]])
    load = np.array([30, 10, 500])
    assert load_balance.max_over_mean(owners, np.array([30, 10, 500]), load) == 1.5
    assert load_balance.max_over_mean(owners, np.array([0, 10, 500]), load) == 1.0
    assert load_balance.max_over_mean(owners, np.array([0, 0, 0]), load) == 1.0


@given(st.lists(st.tuples(st.sets(st.integers(0, 5), min_size=1), st.integers(0, 1000)), min_size=1, max_size=8))
def test_no_plan_is_cooler_than_the_bound(sets: list[tuple[set[int], int]]) -> None:
    owners = RankSets.of([sorted(members) for members, _ in sets])
    amounts = np.array([amount for _, amount in sets])
    _, load = load_balance.shares(owners, amounts, 6)
    assert load.max() >= load_balance.least_hottest(owners, amounts, 6) - 1e-9


def test_the_bound_is_reached_where_a_set_is_hottest() -> None:
    owners = RankSets.of([[0, 1], [0], [2]])
    amounts = np.array([100, 20, 40])
    _, load = load_balance.shares(owners, amounts, 3)
    assert load.max() == load_balance.least_hottest(owners, amounts, 3) == 60
    assert load_balance.least_hottest(owners, np.zeros(3, np.int64), 3) == 0
