"""Rules: a class's best rule for given gains."""

from __future__ import annotations

import numpy as np
import pytest

from liver_slurm.advisor.rules import CLASSES, always, chances, hinge, linear, never, tree

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2_000, 3)) * [1.0, 50.0, 1.0] + [0.0, 300.0, 0.0]


@pytest.mark.parametrize("name", CLASSES)
def test_gains_of_one_sign_need_no_rule(name: str) -> None:
    assert CLASSES[name](X, np.abs(X[:, 0]) + 0.1) is always
    assert CLASSES[name](X, -np.abs(X[:, 0])) is never


def test_a_plane_is_found() -> None:
    gains = X[:, 0] - (X[:, 1] - 300.0) / 50.0
    assert (linear(X, gains)(X) == (gains > 0)).mean() > 0.98


def test_a_plane_weighs_gains_and_does_not_count_them() -> None:
    """A few rows on one side gain more than the many lose: to take all is the best plane."""
    gains = np.where(X[:, 0] > 1.5, -0.1, 1.0)
    gains[X[:, 0] < -1.5] = -0.1
    assert (linear(X, gains)(X) * gains).sum() >= gains.sum()


@pytest.mark.parametrize("learn", [hinge, tree])
def test_a_bent_rule_leaves_both_ends(learn: object) -> None:
    assert callable(learn)
    gains = 1.0 - X[:, 0] ** 2
    rule = learn(X, gains)
    assert (rule(X) == (gains > 0)).mean() > 0.9
    assert (linear(X, gains)(X) == (gains > 0)).mean() < 0.8


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_learned_is_the_best_of_noise_and_signal(name: str) -> None:
    gains = X[:, 0] + 0.3 + RANDOM.normal(size=len(X))
    taken = CLASSES[name](X, gains)(X)
    assert (taken * (X[:, 0] + 0.3)).sum() > 0.97 * np.maximum(X[:, 0] + 0.3, 0.0).sum()


def test_chances_are_of_both_actions() -> None:
    assert (chances(always, X[:2]) == [[0.0, 1.0], [0.0, 1.0]]).all()
    assert (chances(never, X[:2]) == [[1.0, 0.0], [1.0, 0.0]]).all()
