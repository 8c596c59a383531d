"""What each row contributes to the value of a policy: one table for both papers, linear in the policy.

A policy is a matrix of chances, [n, L], with rows that sum to 1. Its value is estimated as

    V(pi) = (1/c) * sum over rows i and actions a of pi_ia * (counted_i * m_1(X_i, a) + v_i * D_ia)

with c the sum of counted.

Counted rows are those over which is averaged: all decisions, or the target domain's rows. v is 1, or the ratio of the
densities of X there and here. Which terms are kept is the choice of an estimator: imputation keeps the first (D = 0),
weighting the second with m = 0, the efficient estimator keeps both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from liver_slurm.advisor.arrays import Array, Labels
from liver_slurm.advisor.intervals import Estimated, grouped
from liver_slurm.advisor.stages import Nuisances, on_own_arm
from liver_slurm.advisor.table import DecisionTable


@dataclass(frozen=True)
class Contributions:
    """The terms of every row, decisions first, then the target domain's rows."""

    plug_in: Array
    """counted * m_1(X, a): [rows, L]."""
    residual: Array
    """v * D_a: [rows, L]; 0 for the target domain's rows."""
    entry: Array
    """v * 1(A = a) / e_a: [rows, L]; what a normalised estimate divides by."""
    counted: Array
    """1 for rows that are averaged over, 0 for others: [rows]."""
    groups: Labels

    @property
    def gamma(self) -> Array:
        """Both terms: [rows, L]. The policy that maximises the estimate is the one that maximises sum of pi * gamma."""
        return self.plug_in + self.residual

    def value(self, policy: Array) -> Estimated:
        """Estimate a policy's value; its error is by group."""
        size = self.counted.sum()
        told = (policy * self.gamma).sum(axis=1)
        value = float(told.sum() / size)
        return grouped(value, told - self.counted * value, self.groups, size)

    def gain(self, policy: Array, baseline: Array) -> Estimated:
        """Estimate by how much a policy's value exceeds a baseline's, from the rows where they differ."""
        return self.value(policy - baseline)

    def normalised(self, policy: Array) -> float:
        """Estimate a policy's value with the residuals' weights normalised to 1: steadier in small samples."""
        size = self.counted.sum()
        entries = float((policy * self.entry).sum())
        added = float((policy * self.residual).sum()) / entries if entries > 0.0 else 0.0
        return float((policy * self.plug_in).sum() / size) + added

    def means(self) -> tuple[Estimated, ...]:
        """Estimate the mean of each action, as if everybody took it."""
        arms = self.gamma.shape[1]
        return tuple(self.value(np.tile(np.eye(arms)[arm], (len(self.counted), 1))) for arm in range(arms))

    def effect(self, arm: int = 1, other: int = 0) -> Estimated:
        """Estimate by how much the mean of an action exceeds that of another one."""
        contrast = np.zeros(self.gamma.shape[1])
        contrast[arm], contrast[other] = 1.0, -1.0
        return self.value(np.tile(contrast, (len(self.counted), 1)))

    def without_residuals(self) -> Contributions:
        """Return the contributions of imputation: what the regressions say, and nothing else."""
        return replace(self, residual=np.zeros_like(self.residual))


def here(table: DecisionTable, nuisances: Nuisances) -> Contributions:
    """Return the contributions to the mean over the decisions themselves."""
    return Contributions(
        plug_in=nuisances.first,
        residual=nuisances.residuals(table),
        entry=on_own_arm(table, nuisances.weights(table)[:, 0]),
        counted=np.ones(len(table)),
        groups=table.groups,
    )


def there(table: DecisionTable, nuisances: Nuisances, ratio: Array, target_groups: Labels) -> Contributions:
    """Return the contributions to the mean over the target domain's rows, of which only covariates are known.

    Args:
        table: The source domain's decisions.
        nuisances: Fitted with the target domain's covariates.
        ratio: (1 - s) / s of each decision, see :mod:`liver_slurm.advisor.shift`: [n].
        target_groups: The run of each of the target domain's rows: [n0].
    """
    zeros = np.zeros_like(nuisances.target)
    return Contributions(
        plug_in=np.vstack([np.zeros_like(nuisances.first), nuisances.target]),
        residual=np.vstack([ratio[:, None] * nuisances.residuals(table), zeros]),
        entry=np.vstack([on_own_arm(table, ratio * nuisances.weights(table)[:, 0]), zeros]),
        counted=np.concatenate([np.zeros(len(table)), np.ones(len(zeros))]),
        groups=_apart(table.groups, target_groups),
    )


def both(table: DecisionTable, nuisances: Nuisances, ratio: Array, target_groups: Labels) -> Contributions:
    """Return the contributions to the mean over both domains' rows; arguments as of :func:`there`."""
    zeros = np.zeros_like(nuisances.target)
    share = 1.0 + ratio  # 1 / s
    return Contributions(
        plug_in=np.vstack([nuisances.first, nuisances.target]),
        residual=np.vstack([share[:, None] * nuisances.residuals(table), zeros]),
        entry=np.vstack([on_own_arm(table, share * nuisances.weights(table)[:, 0]), zeros]),
        counted=np.ones(len(table) + len(zeros)),
        groups=_apart(table.groups, target_groups),
    )


def weighting_only(table: DecisionTable, nuisances: Nuisances) -> Nuisances:
    """Return the nuisances with all regressions 0: contributions made of them are those of weighting (IPW)."""
    return replace(
        nuisances,
        first=np.zeros_like(nuisances.first),
        regressions=np.zeros_like(nuisances.regressions),
        target=np.zeros_like(nuisances.target),
    )


def _apart(source: Labels, target: Labels) -> Labels:
    """Number the groups of two domains so that none of one is one of the other."""
    _, first = np.unique(source, return_inverse=True)
    _, second = np.unique(target, return_inverse=True)
    return np.concatenate([first, second + first.max(initial=-1) + 1])
