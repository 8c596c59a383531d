"""Errors by run: decisions of one run depend on each other, so what is summed is the influence of a whole run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from liver_slurm.advisor.arrays import Array, Labels, Whole

FEW_GROUPS = 40
"""With fewer runs quantiles are those of Student's t, and what is told says so."""
BOOTSTRAP = 200
"""Draws of a bootstrap."""


@dataclass(frozen=True)
class Estimated:
    """An estimate with its standard error."""

    value: float
    error: float
    groups: int
    """Runs that it rests on."""

    @property
    def few(self) -> bool:
        """Quantiles are those of Student's t, for there are few runs."""
        return self.groups < FEW_GROUPS

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided confidence interval."""
        reach = self._quantile(0.5 + level / 2) * self.error
        return self.value - reach, self.value + reach

    def at_least(self, level: float = 0.95) -> float:
        """Return the lower end of the one-sided confidence interval."""
        return self.value - self._quantile(level) * self.error

    def _quantile(self, chance: float) -> float:
        if not self.few:
            return NormalDist().inv_cdf(chance)
        if self.groups < 2:
            return math.inf
        from scipy.stats import t

        return float(t.ppf(chance, self.groups - 1))


def grouped(value: float, influence: Array, groups: Labels, size: float) -> Estimated:
    """Return the estimate whose influence on each row is given: the variance is the sum over runs of squared sums.

    Args:
        value: The estimate.
        influence: What each row adds to size times the estimate, centred: [rows].
        groups: The run of each row.
        size: Number of rows that the estimate is an average over.
    """
    names, row_group = np.unique(groups, return_inverse=True)
    sums = np.bincount(row_group, weights=influence, minlength=len(names))
    return Estimated(value, float(np.sqrt((sums**2).sum()) / size), len(names))


def bootstrap(groups: Labels, estimate: Callable[[Whole], float], draws: int = BOOTSTRAP, seed: int = 0) -> Array:
    """Return an estimate on samples of whole runs, drawn with replacement; it is given the numbers of the rows.

    It is for estimates whose influence on rows is not known: weighting, imputation, networks.
    """
    _, row_group = np.unique(groups, return_inverse=True)
    order = np.argsort(row_group, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(row_group))[:-1])
    random = np.random.default_rng(seed)
    drawn = (random.integers(len(members), size=len(members)) for _ in range(draws))
    return np.array([estimate(np.concatenate([members[one] for one in draw])) for draw in drawn])
