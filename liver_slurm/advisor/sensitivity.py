"""How wrong the assumptions may be before an estimate's sign turns: tipping points."""

from __future__ import annotations

import math

import numpy as np

from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.stages import Nuisances, on_own_arm
from liver_slurm.advisor.table import DecisionTable


def lost_shares(table: DecisionTable, nuisances: Nuisances) -> Array:
    """Estimate which share of decisions would be lost at each stage if all had one action: [L, K].

    Weighting by w_{k-1} makes those seen at stage k-1 stand for everybody; what of them is not seen at stage k is
    E[r_1 .. r_{k-1} (1 - r_k)] once the scores are divided out again, so only the propensity remains as a weight.
    """
    before = np.column_stack([np.ones(len(table), dtype=bool), table.seen[:, :-1]])
    lost = before & ~table.seen
    entry = on_own_arm(table, nuisances.weights(table)[:, 0])
    return np.asarray((entry.T @ lost) / entry.sum(axis=0)[:, None], dtype=np.float64)


def tipping_both(effect: float, shares: Array) -> float:
    """Return the shift of the lost with action 1, and its opposite for action 0, that makes the effect 0."""
    return _divided(-effect, float(shares.sum()))


def tipping_concept(lower: float, differing: float) -> float:
    """Return by how much effects at equal covariates may differ between the domains before a gain is gone.

    Args:
        lower: Lower end of the gain's interval; not above 0: the answer is 0, there is no gain to lose.
        differing: Mean of |policy - baseline| over the target's rows.
    """
    return max(0.0, _divided(lower, differing))


def _divided(gap: float, share: float) -> float:
    return gap / share if share > 0.0 else math.copysign(math.inf, gap)
