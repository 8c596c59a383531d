"""Folds: by run, of equal size, whatever the order of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.advisor.folds import by_group
from liver_slurm.base.errors import BadInput


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60), st.integers(1, 4), st.integers(0, 3))
def test_a_run_is_in_one_fold_and_folds_are_of_a_size(names: list[str], folds: int, seed: int) -> None:
    """T10."""
    groups = np.array(names)
    if len(set(names)) < folds:
        with pytest.raises(BadInput, match="cannot be split"):
            by_group(groups, folds, seed)
        return
    found = by_group(groups, folds, seed)
    of_run = {name: set(found[groups == name]) for name in set(names)}
    assert all(len(places) == 1 for places in of_run.values())
    sizes = np.bincount([next(iter(places)) for places in of_run.values()], minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    assert (by_group(groups[::-1], folds, seed) == found[::-1]).all()
