"""Stages: the recursion of scores and regressions, and what holds of it exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from misspecified import blurred

from liver_slurm.advisor import contributions
from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.estimators import seq_dr, seq_msm_b, seq_ri
from liver_slurm.advisor.folds import by_group
from liver_slurm.advisor.learners import Learners, Predict, linear_learners, logistic, ridge
from liver_slurm.advisor.stages import fit_nuisances
from liver_slurm.advisor.synthetic import dropping_out
from liver_slurm.advisor.table import DecisionTable
from liver_slurm.base.errors import BadInput

LINEAR = linear_learners()


def table(n: int = 600, seed: int = 0, groups: int = 60) -> DecisionTable:
    random = np.random.default_rng(seed)
    return replace(dropping_out(n, random).table, groups=random.integers(groups, size=n))


def effect(one: DecisionTable, learners: Learners = LINEAR, folds: int = 5) -> float:
    fitted = fit_nuisances(one, learners, by_group(one.groups, folds))
    return contributions.here(one, fitted).effect().value


def test_with_nothing_missing_it_is_the_doubly_robust_estimator_of_one_stage() -> None:
    """T7: the formula of augmented inverse propensity weighting, written out by hand."""
    random = np.random.default_rng(3)
    x, y = random.normal(size=(500, 3)), random.normal(size=500)
    actions = (random.random(500) < 0.4).astype(np.int64)
    one = DecisionTable(x, actions, y[:, None], np.ones((500, 1), dtype=bool))

    ones = np.ones(500)
    chance = logistic(x, actions.astype(float), ones)(x)
    treated, control = actions == 1, actions == 0
    m1 = ridge(x[treated], y[treated], ones[treated])(x)
    m0 = ridge(x[control], y[control], ones[control])(x)
    by_hand = m1 - m0 + np.where(treated, (y - m1) / chance, -(y - m0) / (1 - chance))

    found = contributions.here(one, fit_nuisances(one, LINEAR))
    assert found.effect().value == pytest.approx(by_hand.mean(), abs=1e-10)
    assert found.effect().error == pytest.approx(by_hand.std() / np.sqrt(500), abs=1e-10)


def test_outcomes_that_say_nothing_change_nothing() -> None:
    one = table()
    full = replace(one, seen=np.ones_like(one.seen), outcomes=np.random.default_rng(1).normal(size=one.outcomes.shape))
    assert fit_nuisances(full, LINEAR).scores.min() == 1.0
    assert effect(full) == pytest.approx(effect(full.last_only()), abs=0.02)


def test_weighted_linear_regressions_have_the_mean_of_the_doubly_robust_estimator() -> None:
    """T8: the weighted residuals of each stage sum to zero."""
    one = table()
    fitted = fit_nuisances(one, LINEAR, weighted=True)
    assert seq_msm_b(one, fitted).means == pytest.approx(seq_dr(one, fitted, ridge).means, abs=1e-8)
    plain = fit_nuisances(one, LINEAR)
    assert np.abs(seq_ri(one, plain).means - seq_dr(one, plain, ridge).means).max() > 1e-4, "weights matter here"


@pytest.mark.parametrize("unseen", [np.nan, 0.0, 1e9])
def test_what_was_not_seen_may_hold_anything(unseen: float) -> None:
    """T9: bit for bit."""
    one = table()
    other = replace(one, outcomes=np.where(one.seen, one.outcomes, unseen))
    assert effect(other) == effect(one)


def test_relabelled_actions_turn_the_effect() -> None:
    """T10."""
    one = table()
    assert effect(replace(one, actions=1 - one.actions)) == pytest.approx(-effect(one), abs=1e-8)


def test_the_effect_has_the_outcomes_unit_and_the_covariates_have_none() -> None:
    """T10."""
    one = table()
    scale, shift = np.array([3.0, 0.01, 200.0, 1.0, 1.0]), np.array([5.0, -2.0, 1e4, 0.0, 7.0])
    moved = replace(one, covariates=one.covariates * scale + shift, outcomes=one.outcomes * 60.0 + 11.0)
    assert effect(moved) == pytest.approx(60.0 * effect(one), rel=1e-6)


def test_the_order_of_decisions_does_not_matter() -> None:
    """T10: folds go by the runs' names."""
    one = table()
    order = np.random.default_rng(2).permutation(len(one))
    assert effect(one.rows(order)) == pytest.approx(effect(one), abs=1e-9)


def test_a_logged_probability_is_used_and_none_is_learned() -> None:
    """T14."""

    def never(features: Array, values: Array, weights: Array) -> Predict:
        raise AssertionError("a propensity was learned though all are logged")

    drawn = dropping_out(600, np.random.default_rng(0))
    logged = replace(drawn.table, logged=drawn.oracle.propensity)
    fitted = fit_nuisances(logged, replace(LINEAR, propensity=never))
    assert (fitted.propensity == drawn.oracle.propensity).all()
    assert effect(logged, replace(LINEAR, propensity=blurred(5, logistic))) == effect(logged)


def test_a_probability_is_learned_where_it_was_not_logged() -> None:
    drawn = dropping_out(600, np.random.default_rng(0))
    known = np.arange(600) < 300
    half = replace(drawn.table, logged=np.where(known[:, None], drawn.oracle.propensity, np.nan))
    fitted = fit_nuisances(half, LINEAR).propensity
    learned = fit_nuisances(drawn.table, LINEAR).propensity
    assert (fitted[known] == drawn.oracle.propensity[known]).all()
    assert (fitted[~known] == learned[~known]).all()


def test_what_is_said_of_a_run_is_learned_from_others() -> None:
    """Outcomes of one fold's runs do not reach its own nuisances, and reach all others."""
    one = table()
    folds = by_group(one.groups, 3)
    mine = folds == 1
    other = replace(one, outcomes=np.where(mine[:, None], one.outcomes + 100.0, one.outcomes))
    before, after = fit_nuisances(one, LINEAR, folds), fit_nuisances(other, LINEAR, folds)
    assert (before.first[mine] == after.first[mine]).all()
    assert (before.propensity == after.propensity).all()
    assert not np.isclose(before.first[~mine], after.first[~mine]).any()


def test_three_actions_have_each_their_mean() -> None:
    random = np.random.default_rng(4)
    n = 6000
    x = random.normal(size=(n, 2))
    odds = np.exp(np.column_stack([np.zeros(n), 0.5 * x[:, 0], -0.5 * x[:, 0]]))
    chance = odds / odds.sum(axis=1, keepdims=True)
    actions = (random.random((n, 1)) > np.cumsum(chance, axis=1)).sum(axis=1)
    outcome = np.array([0.0, 1.0, 3.0])[actions] + x[:, 0] + random.normal(size=n)
    seen = random.random(n) < 0.7
    one = DecisionTable(x, actions, outcome[:, None], seen[:, None])
    means = contributions.here(one, fit_nuisances(one, LINEAR, by_group(one.groups, 5))).means()
    assert [mean.value for mean in means] == pytest.approx([0.0, 1.0, 3.0], abs=0.15)
    assert all(0.01 < mean.error < 0.1 for mean in means)


def test_an_action_without_a_complete_case_is_refused() -> None:
    one = table()
    nobody = replace(one, seen=one.seen & (one.actions == 0)[:, None])
    with pytest.raises(BadInput, match="action 1: no decision"):
        fit_nuisances(nobody, LINEAR)


def test_a_small_score_is_clipped_and_counted() -> None:
    one = table(3000)
    hardly = (one.actions == 1) & (np.random.default_rng(1).random(3000) > 0.01)
    fitted = fit_nuisances(replace(one, seen=one.seen & ~hardly[:, None]), LINEAR)
    assert fitted.scores.min() == 0.02
    assert fitted.clipped[:, 1].any()
    assert not fitted.clipped[one.actions == 0, 1].any()
