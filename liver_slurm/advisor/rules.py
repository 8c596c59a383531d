"""Rules: when to take, as a function of covariates; and how one of a class is learned from gains.

The value of a rule is linear in it (:mod:`liver_slurm.advisor.contributions`), so that the best rule of a class is a
weighted classifier: the label is the sign of a row's gain, the weight its size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.learners import hinges, logistic, sigmoid

Rule = Callable[[Array], Array]
"""Covariates [n, p] to the chance of action 1, [n]."""
Learn = Callable[[Array, Array], Rule]
"""Covariates and gains of action 1 against action 0 to a rule."""

KNOTS = (-1.0, 0.0, 1.0)
"""Where a bent rule bends, in standard deviations of each covariate."""
DEPTH, LEAF = 3, 20
"""Of a tree: questions until an answer, and the fewest rows that an answer rests on."""


def always(x: Array) -> Array:
    """Take whatever is offered."""
    return np.ones(len(x))


def never(x: Array) -> Array:
    """Leave whatever is offered."""
    return np.zeros(len(x))


def chances(rule: Rule, x: Array) -> Array:
    """Return a rule's chance of each action: [n, 2]."""
    return both(rule(x))


def both(taken: Array) -> Array:
    """Return the chance of each action, given that of action 1: [n, 2]."""
    return np.column_stack([1.0 - taken, taken])


def linear(x: Array, gains: Array) -> Rule:
    """Learn a rule that takes on one side of a plane."""
    return _plane(x, gains, lambda scaled: scaled)


def hinge(x: Array, gains: Array) -> Rule:
    """Learn a rule that takes where a sum of functions of one covariate each, bent at :data:`KNOTS`, is positive."""
    return _plane(x, gains, hinges(KNOTS))


def tree(x: Array, gains: Array) -> Rule:
    """Learn a rule of at most :data:`DEPTH` questions, of one covariate each."""
    constant = _unanimous(gains)
    if constant is not None:
        return constant
    from sklearn.tree import DecisionTreeClassifier

    found = DecisionTreeClassifier(max_depth=DEPTH, min_samples_leaf=LEAF, random_state=0)
    found.fit(x, gains > 0.0, sample_weight=np.abs(gains))
    return lambda rows: np.asarray(found.predict(rows), dtype=np.float64)


CLASSES: dict[str, Learn] = {"linear": linear, "hinge": hinge, "tree": tree}
"""Classes of rules by name."""


def _plane(x: Array, gains: Array, bent: Callable[[Array], Array]) -> Rule:
    """Climb the smoothed value from where weighted logistic regression ends, and keep the better of both and of none.

    The smoothed value has several maxima; the classifier's plane is near a good one. Constant rules are in the class.
    """
    constant = _unanimous(gains)
    if constant is not None:
        return constant
    from scipy.optimize import minimize

    centre, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 0.0, spread, 1.0)

    def design(rows: Array) -> Array:
        features = bent((rows - centre) / scale)
        return np.column_stack([np.ones(len(rows)), features])

    inside = design(x)
    weight = gains / np.abs(gains).sum()
    chance = logistic(inside[:, 1:], (gains > 0.0).astype(np.float64), np.abs(gains))(inside[:, 1:])
    odds = np.log(chance) - np.log1p(-chance)
    start = np.linalg.lstsq(inside, np.clip(odds, -20.0, 20.0), rcond=None)[0]

    def loss(plane: Array) -> tuple[float, Array]:
        taken = sigmoid(inside @ plane)
        slope = inside.T @ (weight * taken * (1.0 - taken))
        return -float(weight @ taken) + 1e-5 * float(plane @ plane), 2e-5 * plane - slope

    climbed = np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B").x, dtype=np.float64)
    rules: list[Rule] = [
        lambda rows: (design(rows) @ climbed > 0.0).astype(np.float64),
        lambda rows: (design(rows) @ start > 0.0).astype(np.float64),
        always,
        never,
    ]
    return max(rules, key=lambda rule: float(weight @ rule(x)))


def _unanimous(gains: Array) -> Rule | None:
    if (gains > 0.0).all():
        return always
    return never if (gains <= 0.0).all() else None
