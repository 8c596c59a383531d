"""A design like ``dropping_out`` with weights that stay small, so that an efficiency bound can be checked."""

from __future__ import annotations

import numpy as np

from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.learners import sigmoid
from liver_slurm.advisor.synthetic import Drawn, _Arm, _drawn, _own

BOUNDED_SPREAD = 5.83
"""Standard deviation of the influence function, by 2.4 million rows: over root n it bounds an error."""


def bounded(n: int, random: np.random.Generator) -> Drawn:
    """Draw the design with three covariates whose propensities and scores stay between 0.2 and 0.95."""
    x = random.normal(size=(n, 3))
    chance = 0.2 + 0.6 * sigmoid(x[:, 0])
    arms = []
    for a in (0, 1):
        first = x[:, 0] + a * (1.0 + x[:, 1])
        s1 = first + random.normal(size=n)
        rest = x[:, 2] + 0.5 * a

        def second(s1: Array, a: int = a) -> Array:
            return np.asarray(0.5 * s1 + x[:, 1] + 0.5 * a)

        s2 = second(s1) + random.normal(size=n)
        means = [
            0.7 * first + 0.9 * second(first) + rest,
            0.7 * s1 + 0.9 * second(s1) + rest,
            0.7 * s1 + 0.9 * s2 + rest,
        ]
        arms.append(_Arm(np.column_stack([s1, s2, means[2] + random.normal(size=n)]), np.column_stack(means)))
    actions = (random.random(n) < chance).astype(np.int64)
    outcomes = _own(arms, actions).outcomes

    def score(z: Array) -> Array:
        return np.asarray(0.35 + 0.6 * sigmoid(0.3 + z))

    scores = [score(x[:, 0] + 0.5 * actions), score(-actions * outcomes[:, 0]), score(-actions * outcomes[:, 1])]
    return _drawn(x, chance, actions, arms, np.column_stack(scores), random, truth=2.1)
