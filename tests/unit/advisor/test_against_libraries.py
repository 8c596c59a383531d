"""The estimators against doubleml and econml, in the special cases that these have."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from liver_slurm.advisor import contributions
from liver_slurm.advisor.arrays import Array, Whole
from liver_slurm.advisor.estimators import seq_dr
from liver_slurm.advisor.folds import by_group
from liver_slurm.advisor.learners import linear_learners, ridge
from liver_slurm.advisor.stages import fit_nuisances
from liver_slurm.advisor.synthetic import dropping_out
from liver_slurm.advisor.table import DecisionTable

pytestmark = pytest.mark.advisor_check
N = 2_000


def one_stage(n: int = N, *, everything: bool = False) -> DecisionTable:
    """The design as a library sees it that has one outcome; who drops out does so by covariates and action alone."""
    random = np.random.default_rng(7)
    drawn = dropping_out(n, random)
    x, actions = drawn.table.covariates, drawn.table.actions
    outcome = drawn.oracle.regressions[:, 0] + random.normal(size=n)
    stays = 1.0 / (1.0 + np.exp(-(0.5 + 0.6 * x[:, 0] - 0.4 * actions)))
    seen = np.ones(n, dtype=bool) if everything else random.random(n) < stays
    return DecisionTable(x, actions, outcome[:, None], seen[:, None])


def splits(folds: Whole) -> list[tuple[Array, Array]]:
    return [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds)]


def linear_models() -> tuple[object, object]:
    from sklearn.linear_model import LinearRegression, LogisticRegression

    return LinearRegression(), LogisticRegression(C=1e3, max_iter=1000)


def test_a_missing_outcome_is_as_doubleml_has_it() -> None:
    """T7: one stage, within 0.3 standard errors, with the same folds."""
    import doubleml

    table, folds = one_stage(), by_group(np.arange(N), 5)
    mean, chance = linear_models()
    data = doubleml.DoubleMLSSMData.from_arrays(
        table.covariates, table.outcomes[:, 0], table.actions, s=table.seen[:, 0]
    )
    theirs = doubleml.DoubleMLSSM(data, mean, chance, chance, score="missing-at-random", draw_sample_splitting=False)
    theirs.set_sample_splitting(splits(folds))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit()
    ours = contributions.here(table, fit_nuisances(table, linear_learners(), folds)).effect()
    assert abs(ours.value - theirs.coef[0]) < 0.3 * theirs.se[0]
    assert ours.error == pytest.approx(theirs.se[0], rel=0.05)
    assert abs(ours.value - 1.5) < 3 * ours.error


def test_complete_data_are_as_doubleml_has_them() -> None:
    import doubleml

    table, folds = one_stage(everything=True), by_group(np.arange(N), 5)
    mean, chance = linear_models()
    data = doubleml.DoubleMLData.from_arrays(table.covariates, table.outcomes[:, 0], table.actions)
    theirs = doubleml.DoubleMLIRM(data, mean, chance, draw_sample_splitting=False)
    theirs.set_sample_splitting(splits(folds))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit()
    ours = contributions.here(table, fit_nuisances(table, linear_learners(), folds)).effect()
    assert abs(ours.value - theirs.coef[0]) < 0.3 * theirs.se[0]
    assert ours.error == pytest.approx(theirs.se[0], rel=0.05)


def test_effects_by_covariates_are_as_econml_has_them() -> None:
    from econml.dr import LinearDRLearner

    table = one_stage(everything=True)
    mean, chance = linear_models()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = LinearDRLearner(model_regression=mean, model_propensity=chance, cv=5, random_state=0)
        theirs.fit(table.outcomes[:, 0], table.actions, X=table.covariates)
        expected = theirs.effect(table.covariates)
    ours = seq_dr(table, fit_nuisances(table, linear_learners(), by_group(np.arange(N), 5)), ridge).effects
    assert np.corrcoef(ours, expected)[0, 1] > 0.98
    assert np.sqrt(np.mean((ours - expected) ** 2)) < 0.2
