"""Covariate shift: how much more likely a decision's covariates are in the target domain than in the source's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from liver_slurm.advisor.arrays import Array, Mask, Whole
from liver_slurm.advisor.folds import one_fold
from liver_slurm.advisor.learners import Learner

CLIP = 0.02
"""No decision is taken to be less likely to be of the source than this: it stands for 49 rows of the target at most."""
CAP = 10.0
"""Times the mean ratio that no decision's exceeds where a rule is judged."""


@dataclass(frozen=True)
class Ratio:
    """(1 - s) / s with s = P(source | X), of rows of both domains."""

    source: Array
    """Of each decision: [n1]. Its sum is about the number of the target's rows."""
    outside: Mask
    """Which of the target's rows have an s below the clip, as nothing in the source is like them: [n0]."""
    cut: float = 0.0
    """Share of the sum that was above a cap, and was spread over all decisions."""

    def capped(self, times: float = CAP) -> Ratio:
        """Return the ratio with the largest ones cut to so many times the mean, and the same sum.

        The efficient estimate's bias is the error of a weight times that of a regression, so what the cut adds is small
        where regressions are about right; its variance is the square of a weight, of which a few hold most.
        """
        total = float(self.source.sum())
        kept = np.minimum(self.source, times * self.source.mean())
        if kept.sum() <= 0.0:
            return self
        return replace(self, source=kept * (total / kept.sum()), cut=1.0 - float(kept.sum()) / total)


def density_ratio(
    source: Array,
    target: Array,
    learner: Learner,
    source_folds: Whole | None = None,
    target_folds: Whole | None = None,
) -> Ratio:
    """Learn to tell the domains apart; folds are those of the nuisances.

    The classifier sees all rows of both domains with equal weights, so its odds need no further factor. Balanced class
    weights, or odds that are divided by the sizes once more, would rescale every value that the ratio goes into.
    """
    source_folds = one_fold(len(source)) if source_folds is None else source_folds
    target_folds = one_fold(len(target)) if target_folds is None else target_folds
    pooled = np.vstack([source, target])
    folds = np.concatenate([source_folds, target_folds])
    label = np.concatenate([np.ones(len(source)), np.zeros(len(target))])
    several = len(np.unique(folds)) > 1
    chance = np.empty(len(pooled))
    for fold in np.unique(folds):
        inside = folds == fold
        train = ~inside if several else np.ones(len(pooled), dtype=bool)
        learned = learner(pooled[train], label[train], np.ones(int(train.sum())))
        chance[inside] = learned(pooled[inside])
    outside = chance[len(source) :] < CLIP
    chance = np.clip(chance, CLIP, 1.0)
    return Ratio((1.0 - chance[: len(source)]) / chance[: len(source)], outside)
