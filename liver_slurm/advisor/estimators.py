"""The estimators by name: each gives the mean of every action and the expected outcome of every decision under it.

complete cases   regression on decisions whose long-term outcome was seen, as if dropping out were by chance
IPW              complete cases, each weighted by how unlikely it was; regressed on X over all decisions
SeqRI            sequential regression imputation: stage by stage backwards, each regression on what the next one says
SeqMSM A         marginal structural model: weighted regression among complete cases
SeqMSM B         SeqRI whose regressions are weighted
SeqDR            both at once: consistent if either all weights or all regressions are right, and efficient

SeqMSM is named in arXiv 2504.19527, whose formula for it we do not have: A and B are the two readings of the name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from liver_slurm.advisor import contributions
from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.contributions import Contributions
from liver_slurm.advisor.intervals import Estimated
from liver_slurm.advisor.learners import Learner, Learners
from liver_slurm.advisor.stages import Nuisances, on_own_arm
from liver_slurm.advisor.table import DecisionTable


@dataclass(frozen=True)
class Effects:
    """What an estimator says of a table."""

    means: Array
    """Mean outcome of each action: [L]."""
    fitted: Array
    """Expected outcome of each decision under each action: [n, L]."""
    scores: Contributions | None = None
    """What an interval rests on; None: the estimator has none but by bootstrap."""

    @property
    def effect(self) -> float:
        """Mean effect of action 1 against action 0."""
        return float(self.means[1] - self.means[0])

    @property
    def effects(self) -> Array:
        """Effect of action 1 against action 0 at each decision: [n]."""
        return np.asarray(self.fitted[:, 1] - self.fitted[:, 0], dtype=np.float64)

    @property
    def estimated(self) -> Estimated | None:
        """The mean effect with its error, where the estimator has one."""
        return self.scores.effect() if self.scores is not None else None


def complete_cases(table: DecisionTable, learner: Learner) -> Effects:
    """Regress the outcome on X among complete cases, each action apart."""
    return _among_complete_cases(table, learner, np.ones(len(table)))


def ipw(table: DecisionTable, nuisances: Nuisances, final: Learner, *, normalised: bool = False) -> Effects:
    """Weight complete cases by the inverse of the chance to be one.

    Args:
        table: The decisions.
        nuisances: Propensities and scores; regressions are not looked at.
        final: The regression of the weighted outcome on X, over all decisions.
        normalised: Weights of each action sum to 1 in its mean (Hájek), which is biased a little and steadier.
    """
    weights = on_own_arm(table, nuisances.weights(table)[:, -1])
    outcomes = weights * table.outcomes[:, -1:]
    means = outcomes.sum(axis=0) / (weights.sum(axis=0) if normalised else len(table))
    return Effects(means, _regressed(table, outcomes, final))


def seq_ri(table: DecisionTable, nuisances: Nuisances) -> Effects:
    """Impute stage by stage: the expected outcome is m_1."""
    return Effects(nuisances.first.mean(axis=0), nuisances.first)


def seq_msm_a(table: DecisionTable, nuisances: Nuisances, learner: Learner) -> Effects:
    """Regress the outcome on X among complete cases, weighted by the inverse of the chance to be one."""
    return _among_complete_cases(table, learner, nuisances.weights(table)[:, -1])


def seq_msm_b(table: DecisionTable, weighted: Nuisances) -> Effects:
    """Impute stage by stage with weighted regressions: :func:`seq_ri` on nuisances that were fitted ``weighted``."""
    return seq_ri(table, weighted)


def seq_dr(table: DecisionTable, nuisances: Nuisances, final: Learner) -> Effects:
    """Add to m_1 what its residuals say; the expected outcome is the regression of that sum on X."""
    scores = contributions.here(table, nuisances)
    return Effects(scores.gamma.mean(axis=0), _regressed(table, scores.gamma, final), scores)


FITTED: dict[str, Callable[[DecisionTable, Nuisances, Nuisances, Learners, Learner], Effects]] = {
    "complete cases": lambda table, plain, weighted, learners, final: complete_cases(table, learners.regression(0)),
    "IPW": lambda table, plain, weighted, learners, final: ipw(table, plain, final),
    "SeqRI": lambda table, plain, weighted, learners, final: seq_ri(table, plain),
    "SeqMSM A": lambda table, plain, weighted, learners, final: seq_msm_a(table, plain, final),
    "SeqMSM B": lambda table, plain, weighted, learners, final: seq_msm_b(table, weighted),
    "SeqDR": lambda table, plain, weighted, learners, final: seq_dr(table, plain, final),
}
"""Each estimator that needs no network, from a table and its nuisances, fitted plainly and fitted ``weighted``."""


def _among_complete_cases(table: DecisionTable, learner: Learner, weights: Array) -> Effects:
    fitted = np.empty((len(table), table.arms))
    for arm in range(table.arms):
        rows = table.complete & (table.actions == arm)
        predict = learner(table.covariates[rows], table.outcomes[rows, -1], weights[rows])
        fitted[:, arm] = predict(table.covariates)
    return Effects(fitted.mean(axis=0), fitted)


def _regressed(table: DecisionTable, values: Array, final: Learner) -> Array:
    """Regress each action's column on X over all decisions: [n, L]."""
    ones = np.ones(len(table))
    return np.column_stack([final(table.covariates, column, ones)(table.covariates) for column in values.T])
