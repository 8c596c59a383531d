"""BalanceNet: what its two readings promise, and that they are not far from what is simpler."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from liver_slurm.advisor import balance
from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.balance import Training, balanced_representation, balanced_weights
from liver_slurm.advisor.estimators import seq_dr, seq_msm_a, seq_ri
from liver_slurm.advisor.learners import linear_learners, ridge
from liver_slurm.advisor.stages import Nuisances, fit_nuisances, on_own_arm
from liver_slurm.advisor.synthetic import dropping_out
from liver_slurm.advisor.table import DecisionTable

DRAWN = dropping_out(1_000, np.random.default_rng(1))
PLAIN = fit_nuisances(DRAWN.table, linear_learners())


def off(effects: Array) -> float:
    """Root of the mean squared error of the effects."""
    return float(np.sqrt(np.mean((effects - DRAWN.effects) ** 2)))


def imbalance(table: DecisionTable, nuisances: Nuisances) -> float:
    """What reading W keeps small: of all stages and both actions, and with any weights."""
    x = balance._standard(table.covariates, np.ones(len(table), dtype=bool))
    weights = nuisances.weights(table)
    reference = np.ones((len(table), table.arms))
    found = 0.0
    features = [np.ones((len(table), 1)), x, x**2]
    for stage in range(weights.shape[1]):
        own = on_own_arm(table, weights[:, stage])
        if stage >= 2:
            features.append(balance._standard(table.outcomes[:, [stage - 2]], table.seen[:, stage - 2]))
        gap = (own - reference).T @ np.hstack(features) / len(table)
        found += float((gap**2).sum())
        reference = own
    return found


@pytest.mark.slow
def test_weights_that_are_trained_for_balance_have_more_of_it() -> None:
    """T18."""
    free, held = (balanced_weights(DRAWN.table, PLAIN, Training(balance=weight)) for weight in (0.0, 3.0))
    assert imbalance(DRAWN.table, held) < 0.5 * imbalance(DRAWN.table, free)
    simple = off(seq_ri(DRAWN.table, PLAIN).effects)
    assert off(seq_dr(DRAWN.table, held, ridge).effects) < 1.5 * simple
    assert off(seq_msm_a(DRAWN.table, held, ridge).effects) < 1.5 * simple


def test_true_weights_are_balanced_but_for_chance() -> None:
    many = dropping_out(100_000, np.random.default_rng(2))
    skewed = replace(many.oracle, scores=np.full((100_000, 3), 0.7))
    assert imbalance(many.table, many.oracle) < 0.2 * imbalance(many.table, skewed)


def test_a_logged_probability_stays() -> None:
    logged = replace(DRAWN.table, logged=DRAWN.oracle.propensity)
    found = balanced_weights(logged, PLAIN, Training(balance=1.0, epochs=3))
    assert (found.propensity == DRAWN.oracle.propensity).all()


@pytest.mark.slow
def test_a_representation_that_is_trained_for_balance_has_more_of_it() -> None:
    """T18."""
    free, apart_free = balanced_representation(DRAWN.table, Training(balance=0.0))
    held, apart_held = balanced_representation(DRAWN.table, Training(balance=0.3))
    assert apart_held < apart_free
    simple = off(seq_ri(DRAWN.table, PLAIN).effects)
    assert max(off(free.effects), off(held.effects)) < 1.5 * simple


def test_training_is_reproducible_and_leaves_the_random_numbers_of_others_alone() -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (balanced_representation(DRAWN.table, Training(balance=0.1, epochs=3))[0] for _ in range(2))
    assert (first.fitted == second.fitted).all()
    assert torch.rand(1) == expected
