"""Designs with known effects: what the estimators are tested and compared on.

``dropping_out`` has confounded actions, three outcomes, and decisions that drop out because of what was seen until
then. Designs with two domains are in :mod:`liver_slurm.advisor.synthetic_shift`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from liver_slurm.advisor.arrays import Array, Mask, Whole
from liver_slurm.advisor.learners import sigmoid
from liver_slurm.advisor.stages import Nuisances
from liver_slurm.advisor.table import DecisionTable

MILD, SEVERE = 1.6, 0.3
"""Intercepts of the scores: half of all decisions are complete, and a fifth."""


@dataclass(frozen=True)
class Drawn:
    """A table with the truth about it."""

    table: DecisionTable
    effects: Array
    """Effect of action 1 against action 0 at each decision: [n]."""
    truth: float
    """Mean effect in the population."""
    oracle: Nuisances


@dataclass(frozen=True)
class _Arm:
    """One action's outcomes of everybody, and what is expected of the last one at each stage."""

    outcomes: Array
    means: Array
    """m_1 .. m_K at each row's own history: [n, K]."""


def dropping_out(n: int, random: np.random.Generator, intercept: float = MILD) -> Drawn:
    """Draw the design with five covariates in which those that do worse drop out sooner, more so where action is 1."""
    x = random.normal(size=(n, 5))
    chance = sigmoid(0.5 * x[:, 0] - 0.5 * x[:, 1])
    arms = []
    for a in (0, 1):
        first = 1.0 + x[:, 0] + 0.5 * x[:, 1] + a * (1.0 + 0.5 * x[:, 2])
        s1 = first + random.normal(size=n)

        def second(s1: Array, a: int = a) -> Array:
            return np.asarray(0.5 * s1 + 0.5 * x[:, 1] + x[:, 3] + 0.5 * a * x[:, 0])

        def last(s1: Array, s2: Array, a: int = a) -> Array:
            return np.asarray(0.6 * s1 + 0.8 * s2 + x[:, 0] + a * (0.5 + x[:, 1]))

        s2 = second(s1) + random.normal(size=n)
        means = [last(first, second(first)), last(s1, second(s1)), last(s1, s2)]
        arms.append(_Arm(np.column_stack([s1, s2, means[2] + random.normal(size=n)]), np.column_stack(means)))

    def scores(a: Whole, outcomes: Array) -> Array:
        slope = np.where(a == 1, 0.9, 0.2)
        return np.column_stack(
            [
                sigmoid(intercept + 0.5 * x[:, 0] + 0.5 * (a - 0.5)),
                sigmoid(intercept + 0.4 * x[:, 1] - slope * (outcomes[:, 0] - 1.5)),
                sigmoid(intercept + 0.4 * x[:, 0] - slope * (outcomes[:, 1] - 1.25)),
            ]
        )

    actions = (random.random(n) < chance).astype(np.int64)
    own = _own(arms, actions)
    return _drawn(x, chance, actions, arms, scores(actions, own.outcomes), random, truth=1.5)


def nonlinear_view(x: Array) -> Array:
    """Return nonlinear transforms of the first four columns, and the others: linear models of them are wrong.

    They are those of Kang and Schafer, "Demystifying double robustness" (2007), standardised by the moments that they
    have where columns are standard normal, so that a row is seen alike whatever rows are around it.
    """
    bent = np.column_stack(
        [
            np.exp(x[:, 0] / 2.0),
            x[:, 1] / (1.0 + np.exp(x[:, 0])) + 10.0,
            (x[:, 0] * x[:, 2] / 25.0 + 0.6) ** 3,
            (x[:, 1] + x[:, 3] + 20.0) ** 2,
        ]
    )
    return np.hstack([(bent - _VIEW_MEANS) / _VIEW_SPREADS, x[:, 4:]])


_VIEW_MEANS = np.array([1.133, 10.0, 0.2189, 402.0])
_VIEW_SPREADS = np.array([0.604, 0.539, 0.0434, 56.6])


def _own(arms: list[_Arm], actions: Whole) -> _Arm:
    pick = actions[:, None] == 1
    return _Arm(
        np.where(pick, arms[1].outcomes, arms[0].outcomes),
        np.where(pick, arms[1].means, arms[0].means),
    )


def _drawn(
    x: Array, chance: Array, actions: Whole, arms: list[_Arm], scores: Array, random: np.random.Generator, truth: float
) -> Drawn:
    """Let decisions drop out by their scores, and put the table and the truth together."""
    own = _own(arms, actions)
    seen: Mask = np.cumprod(random.random(scores.shape) < scores, axis=1).astype(bool)
    table = DecisionTable(x, actions, np.where(seen, own.outcomes, np.nan), seen)
    first = np.column_stack([arms[0].means[:, 0], arms[1].means[:, 0]])
    oracle = Nuisances(
        propensity=np.column_stack([1.0 - chance, chance]),
        scores=scores,
        first=first,
        regressions=own.means,
        clipped=np.zeros((len(x), 1 + scores.shape[1]), dtype=bool),
        target=np.empty((0, 2)),
    )
    return Drawn(table, first[:, 1] - first[:, 0], truth, oracle)
