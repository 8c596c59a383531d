"""Sensitivity: tipping points against what is simulated to break the assumptions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from liver_slurm.advisor import contributions
from liver_slurm.advisor.learners import linear_learners
from liver_slurm.advisor.sensitivity import lost_shares, tipping_both, tipping_concept
from liver_slurm.advisor.stages import fit_nuisances
from liver_slurm.advisor.synthetic import dropping_out


def test_the_shares_are_those_of_everybody_under_each_action() -> None:
    """Taken apart by action they would be those of the decisions that had it, who are not like everybody."""
    drawn = dropping_out(200_000, np.random.default_rng(0))
    found = lost_shares(drawn.table, drawn.oracle)
    assert found.shape == (2, 3)
    assert found.sum(axis=1) == pytest.approx(1.0 - _complete_if_all(0, 1), abs=0.01)


def _complete_if_all(*actions: int) -> np.ndarray:
    """Share of complete cases where the propensity does not depend on the covariates, as if drawn by a coin."""
    shares = []
    for action in actions:
        drawn = dropping_out(200_000, np.random.default_rng(1))
        one = drawn.table
        own = one.actions == action
        chance = 1.0 / drawn.oracle.propensity[own, action]
        shares.append(np.average(one.complete[own], weights=chance))
    return np.array(shares)


def with_unseen(effect: float, shares: np.ndarray, shift: np.ndarray) -> float:
    """The effect, if the mean outcome of those lost at each stage is so far above the regression's."""
    moved = (shares * shift).sum(axis=1)
    return effect + float(moved[1] - moved[0])


def test_at_the_tipping_point_the_effect_is_zero() -> None:
    drawn = dropping_out(2_000, np.random.default_rng(3))
    fitted = fit_nuisances(drawn.table, linear_learners())
    effect = contributions.here(drawn.table, fitted).effect().value
    shares = lost_shares(drawn.table, fitted)
    both = tipping_both(effect, shares)
    assert both < 0
    assert with_unseen(effect, shares, np.array([np.full(3, -both), np.full(3, both)])) == pytest.approx(0, abs=1e-12)


def test_where_nobody_is_lost_nothing_can_tip() -> None:
    one = dropping_out(500, np.random.default_rng(4)).table
    full = replace(one, seen=np.ones_like(one.seen))
    shares = lost_shares(full, fit_nuisances(full, linear_learners()))
    assert (shares == 0.0).all()
    assert tipping_both(1.5, shares) == -np.inf
    assert tipping_both(-1.5, shares) == np.inf


@pytest.mark.parametrize(
    ("lower", "differing", "point"), [(3.0, 0.5, 6.0), (-1.0, 0.5, 0.0), (3.0, 0.0, np.inf), (-1.0, 0.0, 0.0)]
)
def test_a_gain_holds_up_to_a_difference_between_domains(lower: float, differing: float, point: float) -> None:
    assert tipping_concept(lower, differing) == point
