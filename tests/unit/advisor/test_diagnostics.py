"""Diagnostics: what a table can carry, and what is said against it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from liver_slurm.advisor.diagnostics import differences, support
from liver_slurm.advisor.learners import linear_learners, logistic
from liver_slurm.advisor.shift import density_ratio
from liver_slurm.advisor.stages import Nuisances, fit_nuisances
from liver_slurm.advisor.synthetic import SEVERE, dropping_out
from liver_slurm.advisor.synthetic_shift import LINEAR, shifted
from liver_slurm.advisor.table import DecisionTable


def weighted(weights: list[float]) -> tuple[DecisionTable, Nuisances]:
    """Complete decisions with action 1 of these weights, and as many with action 0 of weight 1."""
    n = len(weights)
    actions = np.array([0] * n + [1] * n)
    table = DecisionTable(np.zeros((2 * n, 1)), actions, np.zeros((2 * n, 1)), np.ones((2 * n, 1), dtype=bool))
    own = np.concatenate([np.ones(n), 1.0 / np.array(weights)])
    fitted = fit_nuisances(table, linear_learners())
    return table, replace(fitted, propensity=np.column_stack([own, own]))


def test_equal_weights_are_worth_their_number() -> None:
    found = support(*weighted([2.0] * 200))
    assert [(arm.decisions, arm.complete) for arm in found.arms] == [(200, 200), (200, 200)]
    assert [arm.effective for arm in found.arms] == pytest.approx([200.0, 200.0])
    assert found.objections() == ()


def test_one_decision_that_stands_for_many_is_named() -> None:
    found = support(*weighted([1.0] * 199 + [50.0]))
    assert found.arms[1].largest == pytest.approx(50 / 249)
    assert found.arms[1].effective == pytest.approx(249**2 / (199 + 2500))
    assert found.whole.effective == pytest.approx(449**2 / (399 + 2500))
    assert found.objections() == (
        "400 complete decisions are worth 70 of equal weight",
        "one decision has 11% of the weight",
    )
    assert "34% of the weight was on a few decisions, and was cut off" in replace(found, cut=0.34).objections()


def test_an_action_of_which_nothing_is_complete_is_worth_nothing() -> None:
    table, fitted = weighted([1.0] * 150)
    nobody = replace(table, seen=(table.actions == 0)[:, None])
    found = support(nobody, fitted)
    assert found.arms[1].complete == 0
    assert found.arms[1].effective == 0.0
    assert found.arms[0].effective == found.whole.effective == pytest.approx(150.0)


def test_few_complete_cases_are_seen_as_few() -> None:
    mild, severe = (dropping_out(1_000, np.random.default_rng(0), c).table for c in (1.6, SEVERE))
    few = support(severe, fit_nuisances(severe, linear_learners()))
    many = support(mild, fit_nuisances(mild, linear_learners()))
    assert few.arms[1].effective < 100 < many.arms[0].effective
    assert len(few.clipped) == 4


def test_domains_that_are_far_apart_are_seen_as_such() -> None:
    near, far = (shifted(2_000, 2_000, np.random.default_rng(1), shift, LINEAR) for shift in (0.2, 3.0))
    found = []
    for one in (near, far):
        ratio = density_ratio(one.table.covariates, one.target, logistic)
        found.append(support(one.table, fit_nuisances(one.table, linear_learners()), ratio))
    assert found[0].objections() == ()
    assert found[1].outside > 0.2
    assert "of the target's rows are unlike everything in the source" in found[1].objections()[-1]
    apart = differences(far.table.covariates, far.target)
    assert apart == pytest.approx([3.0, -3.0, 0.0, 0.0], abs=0.15)


def test_a_constant_covariate_is_not_apart() -> None:
    assert (differences(np.ones((5, 2)), np.ones((4, 2))) == 0.0).all()
