"""Whether the data can carry an estimate: overlap, weights, and how many decisions it rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from liver_slurm.advisor.arrays import Array, Mask
from liver_slurm.advisor.shift import Ratio
from liver_slurm.advisor.stages import Nuisances
from liver_slurm.advisor.table import DecisionTable

FEW_EFFECTIVE, SMALL_SHARE, LARGE_WEIGHT, OUTSIDE, CUT = 100.0, 0.1, 0.05, 0.2, 1.0 / 3.0
"""Where weights are no longer trusted: effective decisions, their share, the largest weight's share, target outside,
share of the weight that was cut off."""


@dataclass(frozen=True)
class Weighed:
    """What there is of some decisions."""

    decisions: int
    complete: int
    """Decisions whose long-term outcome was seen."""
    effective: float
    """Decisions of equal weight that the weighted complete cases are worth: (sum of v)² / sum of v²."""
    largest: float
    """Share of the largest weight in the sum."""


@dataclass(frozen=True)
class Support:
    """What a table can carry."""

    arms: tuple[Weighed, ...]
    """Of each action."""
    whole: Weighed
    """Of all actions together."""
    clipped: tuple[float, ...]
    """Share of clipped propensities, then of clipped scores of each stage."""
    outside: float
    """Share of the target's rows that nothing in the source is like; 0.0 without a target."""
    cut: float
    """Share of the weight that was cut off as a few decisions had too much of it; 0.0 without a target."""

    def objections(self) -> tuple[str, ...]:
        """Return why weighted estimates are not to be trusted, for people; empty: they are."""
        found = []
        whole = self.whole
        if whole.effective < max(FEW_EFFECTIVE, SMALL_SHARE * whole.complete):
            found.append(f"{whole.complete} complete decisions are worth {whole.effective:.0f} of equal weight")
        if whole.largest > LARGE_WEIGHT:
            found.append(f"one decision has {whole.largest:.0%} of the weight")
        if self.outside > OUTSIDE:
            found.append(f"{self.outside:.0%} of the target's rows are unlike everything in the source")
        if self.cut > CUT:
            found.append(f"{self.cut:.0%} of the weight was on a few decisions, and was cut off")
        return tuple(found)


def support(table: DecisionTable, nuisances: Nuisances, ratio: Ratio | None = None) -> Support:
    """Look at the final weights of a table's decisions."""
    weights = nuisances.weights(table)[:, -1]
    if ratio is not None:
        weights = weights * ratio.source
    return Support(
        tuple(_weighed(table, weights, table.actions == arm) for arm in range(table.arms)),
        _weighed(table, weights, np.ones(len(table), dtype=bool)),
        tuple(float(share) for share in nuisances.clipped.mean(axis=0)),
        float(ratio.outside.mean()) if ratio is not None else 0.0,
        ratio.cut if ratio is not None else 0.0,
    )


def differences(source: Array, target: Array) -> Array:
    """Return how far apart the domains' means of each covariate are, in pooled standard deviations: [p]."""
    spread = np.sqrt((source.var(axis=0) + target.var(axis=0)) / 2.0)
    gap = target.mean(axis=0) - source.mean(axis=0)
    return np.asarray(np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 0.0), dtype=np.float64)


def _weighed(table: DecisionTable, weights: Array, mine: Mask) -> Weighed:
    own = weights[mine & table.complete]
    total = float(own.sum())
    if total <= 0.0:
        return Weighed(int(mine.sum()), len(own), 0.0, 0.0)
    return Weighed(
        decisions=int(mine.sum()),
        complete=len(own),
        effective=total**2 / float((own**2).sum()),
        largest=float(own.max()) / total,
    )
