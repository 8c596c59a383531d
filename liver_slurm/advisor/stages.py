"""The recursion over stages: scores forward, regressions backward, and what each decision adds to an action's mean.

With history h_k = (X, S_1 .. S_{k-1}) before stage k, and R_0 = 1:

    r_k(h_k, a) = P(R_k = 1 | h_k, A = a, R_{k-1} = 1)           score of stage k
    m_{K+1} = Y,  m_k(h_k, a) = E[m_{k+1} | h_k, A = a, R_k = 1]   regression of stage k
    w_0 = 1(A = a) / e_a(X),  w_k = w_{k-1} R_k / r_k
    D_a = sum over k of w_k (m_{k+1} - m_k)

E[Y(a)] is the mean of m_1(X, a) + D_a, which is the efficient score: its bias is a sum of products, the error of a
weight times the error of the regression of the same stage. Without D_a it is imputation, with m = 0 it is weighting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from liver_slurm.advisor.arrays import Array, Mask, Whole
from liver_slurm.advisor.folds import one_fold
from liver_slurm.advisor.learners import Learners, Predict
from liver_slurm.advisor.table import DecisionTable
from liver_slurm.base.errors import BadInput

CLIP = 0.02
"""No propensity and no score is taken to be smaller: one decision must not stand for more than fifty at any stage."""


@dataclass(frozen=True)
class Nuisances:
    """What has to be known besides the effect itself, at each decision of a table."""

    propensity: Array
    """e_a(X): [n, L]."""
    scores: Array
    """r_k at the decision's own history and action: [n, K]; 1 where the stage before was not seen."""
    first: Array
    """m_1(X, a) of every action: [n, L]."""
    regressions: Array
    """m_1 .. m_K at the decision's own history and action: [n, K]; of use where the stage before was seen."""
    clipped: Mask
    """Which propensities of the own action, and scores, were below the clip: [n, 1 + K]."""
    target: Array
    """m_1(X, a) of the rows of another domain: [n0, L]; no rows if there is none."""

    def weights(self, table: DecisionTable) -> Array:
        """Return w_0 .. w_K for the decision's own action: [n, 1 + K]."""
        own = self.propensity[np.arange(len(table)), table.actions]
        kept = np.where(table.seen, 1.0 / self.scores, 0.0)
        return np.cumprod(np.column_stack([1.0 / own, kept]), axis=1)

    def residuals(self, table: DecisionTable) -> Array:
        """Return D_a: [n, L], 0 for the actions that were not taken."""
        later = np.column_stack([self.regressions[:, 1:], table.outcomes[:, -1]])
        steps = np.where(table.seen, later - self.regressions, 0.0)
        return on_own_arm(table, (self.weights(table)[:, 1:] * steps).sum(axis=1))


def on_own_arm(table: DecisionTable, values: Array) -> Array:
    """Spread a value for each decision over a column for each action, 0 where it was not taken: [n, L]."""
    spread = np.zeros((len(table), table.arms))
    spread[np.arange(len(table)), table.actions] = values
    return spread


def fit_nuisances(
    table: DecisionTable,
    learners: Learners,
    folds: Whole | None = None,
    *,
    target: Array | None = None,
    target_folds: Whole | None = None,
    weighted: bool = False,
) -> Nuisances:
    """Fit all nuisances, each fold's on the decisions of the other folds.

    Args:
        table: The decisions with outcomes.
        learners: How scores and means are learned.
        folds: The fold of each decision, see :mod:`liver_slurm.advisor.folds`; without it all is fitted on all.
        target: Covariates of another domain, [n0, p].
        target_folds: The fold of each of its rows; without it all of them are in fold 0.
        weighted: Fit the regression of stage k with the weights w_k, so that with a linear one the mean of m_1 is
            consistent also where the regression is wrong and the weights are right.

    Raises:
        BadInput: an action has no complete case to learn from.
    """
    n, arms, stages = len(table), table.arms, table.stages
    folds = one_fold(n) if folds is None else folds
    target = np.empty((0, table.covariates.shape[1])) if target is None else target
    target_folds = one_fold(len(target)) if target_folds is None else target_folds
    found = Nuisances(
        propensity=np.empty((n, arms)),
        scores=np.ones((n, stages)),
        first=np.empty((n, arms)),
        regressions=np.zeros((n, stages)),
        clipped=np.zeros((n, 1 + stages), dtype=bool),
        target=np.empty((len(target), arms)),
    )
    several = len(np.unique(folds)) > 1
    for fold in np.unique(np.concatenate([folds, target_folds])):
        inside, there = folds == fold, target_folds == fold
        train = ~inside if several else np.ones(n, dtype=bool)
        chance, small = _propensity(table, learners, train)
        found.propensity[inside], found.clipped[inside, 0] = chance[inside], small[inside]
        for arm in range(arms):
            first = _fit_arm(table, learners, (train, inside), _Entry(arm, chance[:, arm], weighted), found)
            found.first[inside, arm] = first(table.covariates[inside])
            found.target[there, arm] = first(target[there])
    return found


@dataclass(frozen=True)
class _Entry:
    """An action whose stages are fitted."""

    arm: int
    propensity: Array
    """e_a of every decision, by the fit of this fold: [n]."""
    weighted: bool


def _propensity(table: DecisionTable, learners: Learners, train: Mask) -> tuple[Array, Mask]:
    """Return e_a of every row, as logged where that is known, and learned elsewhere; and whose own one was clipped."""
    unknown: Mask = np.asarray(np.isnan(table.logged).any(axis=1))
    if not unknown.any():
        return table.logged, np.zeros(len(table), dtype=bool)
    x = table.covariates
    learned = np.empty((len(table), table.arms))
    for arm in range(1 if table.arms == 2 else 0, table.arms):
        taken = (table.actions[train] == arm).astype(np.float64)
        learned[:, arm] = learners.propensity(x[train], taken, np.ones(len(taken)))(x)
    if table.arms == 2:
        learned[:, 0] = 1.0 - learned[:, 1]
    learned /= learned.sum(axis=1, keepdims=True)
    small = (learned[np.arange(len(table)), table.actions] < CLIP) & unknown
    return np.where(unknown[:, None], np.clip(learned, CLIP, 1.0), table.logged), small


def _fit_arm(
    table: DecisionTable, learners: Learners, split: tuple[Mask, Mask], entry: _Entry, found: Nuisances
) -> Predict:
    """Fit one action's scores and regressions, fill in those of its rows inside the fold, and return m_1."""
    train, inside = split
    arm = entry.arm
    mine = train & (table.actions == arm)
    here = inside & (table.actions == arm)
    if not (mine & table.complete).any():
        raise BadInput(f"action {arm}: no decision with it has a long-term outcome, so nothing can be learned of it")
    histories = [table.history(stage) for stage in range(table.stages)]
    weights = 1.0 / entry.propensity
    stage_weights = []
    before = np.ones(len(table), dtype=bool)
    for stage, history in enumerate(histories):
        seen = table.seen[:, stage]
        rows = mine & before
        score = learners.score(stage)(history[rows], seen[rows].astype(np.float64), np.ones(int(rows.sum())))
        chance = np.ones(len(table))
        asked = (mine | here) & before
        chance[asked] = score(history[asked])
        found.clipped[here, 1 + stage] = chance[here] < CLIP
        chance = np.clip(chance, CLIP, 1.0)
        found.scores[here, stage] = chance[here]
        weights = weights / chance
        stage_weights.append(weights)
        before = seen
    later = table.outcomes[:, -1]
    for stage in reversed(range(table.stages)):
        rows = mine & table.seen[:, stage]
        given = stage_weights[stage][rows] if entry.weighted else np.ones(int(rows.sum()))
        mean = learners.regression(stage)(histories[stage][rows], later[rows], given)
        later = mean(histories[stage])
        found.regressions[here, stage] = later[here]
    return mean
