"""The order of samples: a bijection, a function of (seed, epoch, index) alone, the same however it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.engine.data.order import permute, sample_numbers


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_bijective_over_any_size(size: int, seed: int, epoch: int) -> None:
    image = permute(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(image), np.arange(size))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(0, 500), st.integers(1, 60), st.data())
def test_any_cut_reads_the_same_order(size: int, first: int, count: int, data: st.DataObject) -> None:
    # LS-2
    cut = data.draw(st.integers(0, count))
    whole = sample_numbers(first, count, size, seed=7)
    parts = [sample_numbers(first, cut, size, seed=7), sample_numbers(first + cut, count - cut, size, seed=7)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_large_sizes_and_single_values() -> None:
    size = (1 << 61) + 12345
    image = permute(np.array([0, 1, size - 1]), size, 1, 0)
    assert len(set(image.tolist())) == 3
    assert all(0 <= one < size for one in image.tolist())
    assert permute(np.array([1]), size, 1, 0)[0] == image[1]


def test_seed_and_epoch_change_the_order_and_it_is_well_mixed() -> None:
    size = 4096
    orders = [permute(np.arange(size), size, seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1)]
    for index, one in enumerate(orders):
        assert abs(np.corrcoef(one, np.arange(size))[0, 1]) < 0.08
        assert np.mean(np.diff(one) == 1) < 0.01
        for other in orders[:index]:
            assert np.mean(one == other) < 0.01


def test_the_order_is_pinned() -> None:
    # A run that is resumed by another version must read the same samples.
    assert sample_numbers(0, 8, 10, seed=1234).tolist() == [7, 0, 1, 4, 6, 3, 9, 5]


@pytest.mark.parametrize(("indices", "size"), [([0], 0), ([5], 5), ([-1], 5), ([0], 1 << 62)])
def test_what_is_out_of_range_is_refused(indices: list[int], size: int) -> None:
    with pytest.raises(ValueError, match=r"allowed|outside"):
        permute(np.array(indices), size, 0, 0)
