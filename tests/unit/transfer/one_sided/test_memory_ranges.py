"""Ranges of memory: each element once, in row-major order, and what is left behind those that were carried."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_owner import Recipe
from scattered import pairs

from liver_slurm.transfer.one_sided.description import view_of
from liver_slurm.transfer.one_sided.memory_ranges import advance, behind, contiguous_run, ranges


@settings(max_examples=200, deadline=None)
@given(pairs())
def test_ranges_cover_each_element_once_in_row_major_order(pair: tuple[Recipe, Recipe]) -> None:
    view = pair[1].make()
    described_view = view_of(view)
    for run in {contiguous_run(described_view), min(contiguous_run(described_view), 1)}:
        found = [
            address + at
            for address, nbytes in ranges(described_view, run).tolist()
            for at in range(0, nbytes, view.element_size())
        ]
        offsets = torch.as_strided(torch.arange(1 << 16), view.shape, view.stride()).flatten().tolist()
        assert found == [view.data_ptr() + offset * view.element_size() for offset in offsets]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 60))
def test_what_is_left_is_all_that_was_not_carried(sizes: list[int], carried: int) -> None:
    some = np.array([(100 * n, size) for n, size in enumerate(sizes)], dtype=np.uint64)
    kept = some.copy()
    carried = min(carried, sum(sizes))
    left = behind(some, *advance(some, carried))
    places = [address + at for address, size in kept.tolist() for at in range(size)]
    assert [address + at for address, size in left.tolist() for at in range(size)] == places[carried:]
    assert np.array_equal(some, kept)
