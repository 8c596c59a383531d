"""Learners: against scikit-learn, and where a fit is not to be had."""

from __future__ import annotations

import numpy as np
import pytest

from liver_slurm.advisor.learners import hinges, logistic, ridge, sigmoid

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(400, 3)) * [1.0, 10.0, 0.01] + [0.0, 100.0, 5.0]
WEIGHTS = RANDOM.uniform(0.5, 2.0, size=400)
Y = X @ [1.0, -0.1, 30.0] + RANDOM.normal(size=400)
LABELS = (RANDOM.random(400) < sigmoid(X[:, 0] - 0.1 * (X[:, 1] - 100.0))).astype(np.float64)


def standardised() -> np.ndarray:
    centre = np.average(X, axis=0, weights=WEIGHTS)
    return (X - centre) / np.sqrt(np.average((X - centre) ** 2, axis=0, weights=WEIGHTS))


def test_ridge_is_scikit_learns() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    theirs = linear.Ridge(alpha=1e-3 * WEIGHTS.sum()).fit(standardised(), Y, sample_weight=WEIGHTS)
    assert ridge(X, Y, WEIGHTS)(X) == pytest.approx(theirs.predict(standardised()), abs=1e-8)


def test_logistic_regression_is_scikit_learns() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    theirs = linear.LogisticRegression(C=1.0 / (1e-3 * WEIGHTS.sum()), tol=1e-10, max_iter=1000)
    theirs.fit(standardised(), LABELS, sample_weight=WEIGHTS)
    assert logistic(X, LABELS, WEIGHTS)(X) == pytest.approx(theirs.predict_proba(standardised())[:, 1], abs=1e-5)


def test_weighted_residuals_sum_to_zero() -> None:
    assert WEIGHTS @ (Y - ridge(X, Y, WEIGHTS)(X)) == pytest.approx(0.0, abs=1e-8)
    assert WEIGHTS @ (LABELS - logistic(X, LABELS, WEIGHTS)(X)) == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_where_all_labels_are_equal_the_chance_is_that_label(label: float) -> None:
    labels = np.full(400, label)
    assert (logistic(X, labels, WEIGHTS)(X[:7]) == np.full(7, label)).all()


def test_classes_that_are_apart_are_told_apart_without_an_overflow() -> None:
    found = logistic(X, (X[:, 0] > 0).astype(float), WEIGHTS)(X)
    assert ((found > 0.5) == (X[:, 0] > 0)).mean() > 0.98
    assert np.isfinite(found).all()


def test_a_constant_feature_says_nothing() -> None:
    constant = np.column_stack([X, np.full(400, 3.0)])
    other = np.column_stack([X, np.full(400, 5.0)])
    assert (ridge(constant, Y, WEIGHTS)(other) == ridge(X, Y, WEIGHTS)(X)).all()


def test_hinges_bend_at_their_knots() -> None:
    seen = hinges((0.0, 1.0))(np.array([[-1.0], [0.5], [3.0]]))
    assert (seen == [[-1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [3.0, 3.0, 2.0]]).all()
