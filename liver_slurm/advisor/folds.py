"""Folds for cross-fitting, drawn by group: no run is on both sides of a split."""

from __future__ import annotations

import numpy as np

from liver_slurm.advisor.arrays import Labels, Whole
from liver_slurm.base.errors import BadInput


def one_fold(n: int) -> Whole:
    """Return the folds of a fit without cross-fitting: every row in fold 0, which is fitted on all."""
    return np.zeros(n, dtype=np.int64)


def by_group(groups: Labels, folds: int, seed: int = 0) -> Whole:
    """Return the fold of each row; sizes in groups differ by one at most, and the order of rows does not matter.

    Raises:
        BadInput: there are fewer groups than folds.
    """
    names, row_group = np.unique(groups, return_inverse=True)
    if len(names) < folds:
        raise BadInput(
            f"{len(names)} runs cannot be split into {folds} folds; collect more runs, or ask for fewer folds"
        )
    drawn = np.random.default_rng(seed).permutation(len(names)) % folds
    return drawn[row_group].astype(np.int64)
