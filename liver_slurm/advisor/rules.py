"""Rules: when to take, as a function of covariates; and how one of a class is learned from gains.

The value of a rule is linear in it (:mod:`liver_slurm.advisor.contributions`), so that the best rule of a class is a
weighted classifier: the label is the sign of a row's gain, the weight its size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.learners import hinges, logistic, sigmoid
from liver_slurm.advisor.model import Constant, Node, Plane, RuleDocument, Tree

Rule = Callable[[Array], Array]
"""Covariates [n, p] to the chance of action 1, [n]."""
Learn = Callable[[Array, Array], Rule]
"""Covariates and gains of action 1 against action 0 to a rule."""

KNOTS = (-1.0, 0.0, 1.0)
"""Where a bent rule bends, in standard deviations of each covariate."""
DEPTH, LEAF = 3, 20
"""Of a tree: questions until an answer, and the fewest rows that an answer rests on."""


@dataclass(frozen=True)
class Side:
    """The rule that takes on one side of a plane, which may bend."""

    centre: Array
    scale: Array
    knots: tuple[float, ...]
    """Where it bends, in standard deviations of each covariate; none: it does not."""
    coefficients: Array
    """Of the columns of :meth:`design`."""

    def __call__(self, x: Array) -> Array:
        """Return the chance of action 1."""
        return (self.design(x) @ self.coefficients > 0.0).astype(np.float64)

    def design(self, x: Array) -> Array:
        """Return a column of ones, the scaled covariates, and what they exceed each knot by."""
        return np.column_stack([np.ones(len(x)), hinges(self.knots)((x - self.centre) / self.scale)])


@dataclass(frozen=True)
class Questions:
    """The rule of a tree."""

    estimator: Any
    """A fitted classifier of scikit-learn's."""

    def __call__(self, x: Array) -> Array:
        """Return the chance of action 1."""
        return np.asarray(self.estimator.predict(x), dtype=np.float64)


def document(rule: Rule) -> RuleDocument:
    """Return a learned rule as a model's file has it."""
    if isinstance(rule, Side):
        width = len(rule.centre)
        each = rule.coefficients[1:].reshape(1 + len(rule.knots), width).T
        return Plane(
            centre=tuple(rule.centre.tolist()),
            scale=tuple(rule.scale.tolist()),
            knots=rule.knots,
            intercept=float(rule.coefficients[0]),
            weights=tuple(map(tuple, each.tolist())),
        )
    if isinstance(rule, Questions):
        inner, classes = rule.estimator.tree_, rule.estimator.classes_
        return Tree(
            nodes=tuple(
                Node(
                    column=max(-1, int(inner.feature[node])),  # scikit-learn has -2 for an answer
                    threshold=float(inner.threshold[node]),
                    below=int(inner.children_left[node]),
                    above=int(inner.children_right[node]),
                    take=bool(classes[int(inner.value[node][0].argmax())]),
                )
                for node in range(inner.node_count)
            )
        )
    return Constant(take=rule is always)


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
    return _plane(x, gains, ())


def hinge(x: Array, gains: Array) -> Rule:
    """Learn a rule that takes where a sum of functions of one covariate each, bent at :data:`KNOTS`, is positive."""
    return _plane(x, gains, KNOTS)


def tree(x: Array, gains: Array) -> Rule:
    """Learn a rule of at most :data:`DEPTH` questions, of one covariate each."""
    constant = _unanimous(gains)
    if constant is not None:
        return constant
    from sklearn.tree import DecisionTreeClassifier

    found = DecisionTreeClassifier(max_depth=DEPTH, min_samples_leaf=LEAF, random_state=0)
    found.fit(x, gains > 0.0, sample_weight=np.abs(gains))
    return Questions(found)


CLASSES: dict[str, Learn] = {"linear": linear, "hinge": hinge, "tree": tree}
"""Classes of rules by name."""


def _plane(x: Array, gains: Array, knots: tuple[float, ...]) -> Rule:
    """Climb the smoothed value from where weighted logistic regression ends, and keep the better of both and of none.

    The smoothed value has several maxima; the classifier's plane is near a good one. Constant rules are in the class.
    """
    constant = _unanimous(gains)
    if constant is not None:
        return constant
    from scipy.optimize import minimize

    centre, spread = x.mean(axis=0), x.std(axis=0)
    flat = Side(centre, np.where(spread > 0.0, spread, 1.0), knots, np.zeros(0))
    inside = flat.design(x)
    weight = gains / np.abs(gains).sum()
    chance = logistic(inside[:, 1:], (gains > 0.0).astype(np.float64), np.abs(gains))(inside[:, 1:])
    odds = np.log(chance) - np.log1p(-chance)
    start = np.linalg.lstsq(inside, np.clip(odds, -20.0, 20.0), rcond=None)[0]

    def loss(plane: Array) -> tuple[float, Array]:
        taken = sigmoid(inside @ plane)
        slope = inside.T @ (weight * taken * (1.0 - taken))
        return -float(weight @ taken) + 1e-5 * float(plane @ plane), 2e-5 * plane - slope

    climbed = np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B").x, dtype=np.float64)
    rules: list[Rule] = [replace(flat, coefficients=climbed), replace(flat, coefficients=start), always, never]
    return max(rules, key=lambda rule: float(weight @ rule(x)))


def _unanimous(gains: Array) -> Rule | None:
    if (gains > 0.0).all():
        return always
    return never if (gains <= 0.0).all() else None
