"""Order of the data sets of a blend."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from liver_slurm.engine.data.blend import Blend

PARTS = st.lists(st.integers(1, 60), min_size=1, max_size=25)


@given(PARTS)
@example([50, *[5] * 10])
@example([1] * 40)
@example([999, 1])
def test_after_any_number_of_samples_each_share_is_exact_within_less_than_one(parts: list[int]) -> None:
    blend = Blend(parts)
    taken = np.cumsum(np.equal.outer(blend.sets(0, blend.period), np.arange(len(parts))), axis=0)
    due = np.outer(np.arange(1, blend.period + 1), parts)  # in parts of the period: whole numbers
    assert (np.abs(taken * blend.period - due) < blend.period).all()
    assert taken[-1].tolist() == parts


@given(PARTS, st.integers(0, 10**12), st.integers(0, 300))
def test_counts_and_places_are_those_of_the_order(parts: list[int], first: int, count: int) -> None:
    blend = Blend(parts)
    sets = blend.sets(first, count)
    before = [blend.taken(which, first) for which in range(len(parts))]
    assert sum(before) == first
    for which, taken in enumerate(before):
        places = first + np.flatnonzero(sets == which)
        assert [blend.place(which, taken + index) for index in range(len(places))] == places.tolist()
        assert blend.taken(which, first + count) == taken + len(places)
        assert abs(taken - Fraction(parts[which], blend.period) * first) < 1


@given(PARTS, st.integers(0, 10**9), st.lists(st.integers(1, 50), max_size=8))
def test_the_order_does_not_depend_on_how_it_is_asked_for(parts: list[int], first: int, counts: list[int]) -> None:
    blend, at, found = Blend(parts), first, []
    for count in counts:
        found += blend.sets(at, count).tolist()
        at += count
    assert found == blend.sets(first, sum(counts)).tolist()
