"""Learners of the advisor's tests: right, or seeing nonlinear transforms of the covariates, of which none is right."""

from __future__ import annotations

import numpy as np

from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.learners import Learner, Learners, linear_learners, logistic, ridge, through
from liver_slurm.advisor.synthetic import nonlinear_view


def blurred(covariates: int, learner: Learner) -> Learner:
    """A learner that sees so many first columns of a history transformed, and earlier outcomes as they are."""

    def view(history: Array) -> Array:
        return np.hstack([nonlinear_view(history[:, :covariates]), history[:, covariates:]])

    return through(view, learner)


def learners(covariates: int, *, outcome: bool = True, weights: bool = True) -> Learners:
    """Linear learners of which those of outcomes, or those of propensity and scores, are right or wrong."""
    chance = logistic if weights else blurred(covariates, logistic)
    return Learners(
        propensity=chance,
        scores=(chance,),
        regressions=linear_learners().regressions if outcome else (blurred(covariates, ridge),),
    )


CASES = {
    "both right": {"outcome": True, "weights": True},
    "outcome wrong": {"outcome": False, "weights": True},
    "weights wrong": {"outcome": True, "weights": False},
    "both wrong": {"outcome": False, "weights": False},
}
