"""Designs with two domains and known effects: the target has other covariates, and no outcomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.learners import sigmoid
from liver_slurm.advisor.table import DecisionTable

Surface = Callable[[Array], Array]


@dataclass(frozen=True)
class Surfaces:
    """What is expected of action 0, and the effect of action 1, at covariates of four columns."""

    base: Surface
    effect: Surface


LINEAR = Surfaces(
    lambda x: np.asarray(x[:, 0] + 0.5 * x[:, 1]), lambda x: np.asarray(0.3 + x[:, 0] + 0.8 * x[:, 1] - 0.5 * x[:, 3])
)
BENT = Surfaces(
    lambda x: np.asarray(x[:, 0] + 0.5 * x[:, 1] + 0.5 * x[:, 0] ** 2),
    lambda x: np.asarray(1.2 * np.sin(1.5 * x[:, 0]) + 0.6 * x[:, 1] - 0.3),
)


@dataclass(frozen=True)
class TwoDomains:
    """A source with outcomes and a target without, and the truth about both."""

    table: DecisionTable
    target: Array
    """Covariates of the target: [n0, 4]."""
    surfaces: Surfaces
    shift: float

    def reward(self, policy: Array) -> float:
        """Return the true mean outcome over the target's rows under a policy, the chance of action 1: [n0]."""
        return float((self.surfaces.base(self.target) + policy * self.surfaces.effect(self.target)).mean())


def shifted(n: int, n_target: int, random: np.random.Generator, shift: float, surfaces: Surfaces) -> TwoDomains:
    """Draw a source around 0 and a target around (shift, -shift, 0, 0)."""
    x = random.normal(size=(n, 4))
    chance = sigmoid(0.6 * x[:, 0] - 0.6 * x[:, 2])
    actions = (random.random(n) < chance).astype(np.int64)
    outcome = surfaces.base(x) + actions * surfaces.effect(x) + random.normal(size=n)
    table = DecisionTable(x, actions, outcome[:, None], np.ones((n, 1), dtype=bool))
    target = random.normal(size=(n_target, 4)) + np.array([shift, -shift, 0.0, 0.0])
    return TwoDomains(table, target, surfaces, shift)


def true_reward(policy: Surface, surfaces: Surfaces, shift: float, draws: int = 1_000_000) -> float:
    """Return the mean outcome in the target's population under a policy, by that many draws."""
    x = np.random.default_rng(12345).normal(size=(draws, 4)) + np.array([shift, -shift, 0.0, 0.0])
    return float((surfaces.base(x) + policy(x) * surfaces.effect(x)).mean())


def fixed_policy(x: Array) -> Array:
    """Return the chance of action 1 in the policy whose reward is estimated: [n]."""
    return sigmoid(2.0 * (x[:, 0] + x[:, 2]))
