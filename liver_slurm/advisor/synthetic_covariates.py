"""The design of missing outcomes on covariates of real data: three stages, and effects that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from liver_slurm.advisor.arrays import Array, Whole
from liver_slurm.advisor.learners import sigmoid
from liver_slurm.advisor.table import DecisionTable
from liver_slurm.base.errors import BadInput

_COEFFICIENTS, _CHANCES = (0.0, 1.0, 2.0, 3.0, 4.0), (0.5, 0.2, 0.15, 0.1, 0.05)
_STAGES, _FIRST_COVARIATE = 3, 5


def read(path: Path) -> tuple[Array, Whole]:
    """Read the covariates and the treatment of a file in the manner of IHDP: [n, p] and [n].

    Its columns, without a header, are treatment, outcome, other outcome, both means, then covariates.

    Raises:
        BadInput: there is no such file, or it has other columns.
    """
    try:
        rows = np.loadtxt(path, delimiter=",", ndmin=2)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise BadInput(f"{path}: not a table of numbers between commas without a header: {error}") from error
    if rows.shape[1] < _FIRST_COVARIATE + 2 or not np.isin(rows[:, 0], (0.0, 1.0)).all():
        raise BadInput(f"{path}: expected treatment (0 or 1), two outcomes, two means, then at least two covariates")
    x = rows[:, _FIRST_COVARIATE:]
    spread = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(spread > 0.0, spread, 1.0), rows[:, 0].astype(np.int64)


def drawn_on(
    x: Array, actions: Whole, random: np.random.Generator, *, carried: float, missing: float
) -> tuple[DecisionTable, Array]:
    """Draw outcomes and what is seen of them on given covariates and actions; return the true effects with the table.

    Args:
        x: Standardised covariates, [n, p].
        actions: As they were, [n].
        random: Where chance is from.
        carried: Share of each outcome that is in all later ones: with 0 the short-term outcomes tell nothing.
        missing: Share of decisions whose long-term outcome is not seen.
    """
    n, p = x.shape
    means, outcomes = np.zeros((2, _STAGES, n)), np.zeros((2, _STAGES, n))
    for stage in range(_STAGES):
        plain = random.choice(_COEFFICIENTS, size=p, p=_CHANCES) / 4.0
        treated = np.clip(4.0 * random.normal(size=p), 0.0, 4.0) / 4.0
        for arm, surface, spread in ((0, x @ plain, 1.0), (1, x @ treated + 2.0, 0.5)):
            means[arm, stage] = surface + carried * means[arm, :stage].sum(axis=0)
            noise = random.normal(0.0, spread, size=n)
            outcomes[arm, stage] = surface + noise + carried * outcomes[arm, :stage].sum(axis=0)
    own = np.where(actions == 1, outcomes[1], outcomes[0])
    scaled = (own - own.mean(axis=1, keepdims=True)) / own.std(axis=1, keepdims=True)
    slope = np.where(actions == 1, 0.9, 0.2)
    odds = [0.5 * x[:, 0] + 0.5 * (actions - 0.5), 0.4 * x[:, 1] - slope * scaled[0], 0.4 * x[:, 0] - slope * scaled[1]]
    luck = random.random((_STAGES, n))
    seen = np.cumprod(luck < sigmoid(np.array(odds) + _intercept(np.array(odds), missing)), axis=0).astype(bool).T
    effects = means[1, -1] - means[0, -1]
    table = DecisionTable(x, actions, np.where(seen, own.T, np.nan), seen)
    return table, effects


def _intercept(odds: Array, missing: float) -> float:
    """Find the intercept of all scores at which so many decisions are missing in the end, by halving."""
    low, high = -10.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2.0
        complete = float(np.prod(sigmoid(odds + middle), axis=0).mean())
        low, high = (middle, high) if complete < 1.0 - missing else (low, middle)
    return low
