"""What regressions and probabilities are learned with.

A learner is a function of features [n, p], what to predict [n] and weights [n] that returns a function of features.
Ridge regression and logistic regression are our own: thousands of small fits make one benchmark, and on 2,000 rows of 6
features scikit-learn's took 9 and 14 ms where these take 0.5 and 1.6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from liver_slurm.advisor.arrays import Array

Predict = Callable[[Array], Array]
Learner = Callable[[Array, Array, Array], Predict]

PENALTY = 1e-3
"""Of ridge and logistic regression, in rows for each row: it depends neither on the number of rows nor on units."""
_NEWTON_STEPS = 30
_SMALL_SCALE = 1e-9
"""A feature with less spread than this share of its size is constant, and is left out."""


@dataclass(frozen=True)
class Learners:
    """The learner of each nuisance. A tuple has one for each stage; its last one serves all stages behind it."""

    propensity: Learner
    scores: tuple[Learner, ...]
    regressions: tuple[Learner, ...]

    def score(self, stage: int) -> Learner:
        """Return the learner of a stage's score, counted from 0."""
        return self.scores[min(stage, len(self.scores) - 1)]

    def regression(self, stage: int) -> Learner:
        """Return the learner of a stage's regression, counted from 0."""
        return self.regressions[min(stage, len(self.regressions) - 1)]


def linear_learners() -> Learners:
    """Return logistic regressions for probabilities and ridge regressions for means."""
    return Learners(logistic, (logistic,), (ridge,))


def ridge(features: Array, values: Array, weights: Array) -> Predict:
    """Fit a linear regression with a small penalty on everything but the intercept, on standardised features.

    The weighted residuals of the fit sum to zero.
    """
    design, standardise = _standardised(features, weights)
    total = weights.sum()
    gram = (design * weights[:, None]).T @ design + _penalty(design.shape[1], total)
    coefficients = np.linalg.solve(gram, design.T @ (weights * values))
    return lambda x: standardise(x) @ coefficients


def logistic(features: Array, labels: Array, weights: Array) -> Predict:
    """Fit a probability by Newton's steps, with the penalty of :func:`ridge`; labels are 0 and 1.

    Where all labels are equal, as where nobody dropped out, the probability is that label.
    """
    share = float(np.average(labels, weights=weights)) if len(labels) else 1.0
    if share in (0.0, 1.0):
        return lambda x: np.full(len(x), share)
    design, standardise = _standardised(features, weights)
    penalty = _penalty(design.shape[1], weights.sum())
    coefficients = np.zeros(design.shape[1])
    coefficients[0] = np.log(share / (1.0 - share))
    for _ in range(_NEWTON_STEPS):
        chance = sigmoid(design @ coefficients)
        slope = design.T @ (weights * (labels - chance)) - penalty @ coefficients
        curvature = (design * (weights * chance * (1.0 - chance))[:, None]).T @ design + penalty
        step = np.linalg.solve(curvature, slope)
        # A full step may go too far where classes are nearly separate; bounded ones still reach the maximum.
        step *= min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-300))
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-9:
            break
    return lambda x: sigmoid(standardise(x) @ coefficients)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), without an overflow for large negative x."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), dtype=np.float64)


def through(transform: Callable[[Array], Array], learner: Learner) -> Learner:
    """Return the learner that sees transformed features."""

    def fit(features: Array, values: Array, weights: Array) -> Predict:
        predict = learner(transform(features), values, weights)
        return lambda x: predict(transform(x))

    return fit


def hinges(knots: Sequence[float]) -> Callable[[Array], Array]:
    """Return the transform that lets a linear function bend at these values of each feature: [n, p (1 + knots)]."""
    return lambda x: np.hstack([x, *(np.maximum(x - knot, 0.0) for knot in knots)])


def _standardised(features: Array, weights: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Return the design matrix, intercept first, and the function that makes one of other features."""
    centre = np.average(features, axis=0, weights=weights)
    spread = np.sqrt(np.average((features - centre) ** 2, axis=0, weights=weights))
    kept = spread > _SMALL_SCALE * np.maximum(np.abs(centre), 1e-300)
    scale = np.where(kept, spread, 1.0)

    def standardise(x: Array) -> Array:
        return np.column_stack([np.ones(len(x)), np.where(kept, (x - centre) / scale, 0.0)])

    return standardise(features), standardise


def _penalty(size: int, total: float) -> Array:
    penalty = np.eye(size) * PENALTY * total
    penalty[0, 0] = 0.0
    return penalty
