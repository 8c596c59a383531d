"""Decisions as arrays: what was known, what was done, what came of it, and how much of that was seen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from liver_slurm.advisor.arrays import Array, Labels, Mask, Whole
from liver_slurm.base.errors import BadInput


@dataclass(frozen=True)
class DecisionTable:
    """Logged decisions, one a row.

    Raises:
        BadInput: shapes differ, an outcome was seen behind one that was not, or a value that is needed is not finite.
    """

    covariates: Array
    """X, known before the decision: [n, p]."""
    actions: Whole
    """A, numbers from 0: [n]."""
    outcomes: Array
    """Outcomes in order of distance, the last is the long-term one: [n, K]. What was not seen may hold anything."""
    seen: Mask
    """Which outcomes were seen: [n, K]; once one was not, no later one was."""
    groups: Labels = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """The run that each decision is of: [n]. Decisions of a group depend on each other; empty: each is on its own."""
    logged: Array = field(default_factory=lambda: np.empty((0, 0)))
    """Probability of each action as the logging policy had it: [n, L]; NaN where it is not known; empty: nowhere."""

    def __post_init__(self) -> None:
        """Check what the estimators rely on, and blank what was not seen."""
        n = len(self.covariates)
        if self.groups.size == 0:
            object.__setattr__(self, "groups", np.arange(n))
        if self.logged.size == 0:
            object.__setattr__(self, "logged", np.full((n, int(self.actions.max(initial=1)) + 1), np.nan))
        self._check_shapes(n)
        broken = np.flatnonzero((self.seen[:, 1:] & ~self.seen[:, :-1]).any(axis=1))
        if broken.size:
            raise BadInput(f"decision {broken[0]}: an outcome was seen though an earlier one was not")
        if not np.isfinite(self.covariates).all():
            row, column = np.argwhere(~np.isfinite(self.covariates))[0]
            raise BadInput(f"decision {row}: covariate {column} is {self.covariates[row, column]}, not a finite number")
        # NaN or 1e9 in place of what was not seen must not reach a sum, where 0 times NaN is NaN.
        object.__setattr__(self, "outcomes", np.where(self.seen, self.outcomes, 0.0))
        if not np.isfinite(self.outcomes).all():
            raise BadInput(f"decision {np.argwhere(~np.isfinite(self.outcomes))[0][0]}: a seen outcome is not finite")
        if self.actions.min(initial=0) < 0 or self.actions.max(initial=0) >= self.arms:
            raise BadInput(f"actions must be from 0 to {self.arms - 1}, the columns of the logged probabilities")

        own = self.logged[np.arange(n), self.actions]
        if (own <= 0.0).any():
            row = int(np.flatnonzero(own <= 0.0)[0])
            raise BadInput(f"decision {row}: its logged probability is {own[row]:g}, yet that action was taken")

    def _check_shapes(self, n: int) -> None:
        shapes = {
            "covariates": self.covariates.ndim == 2,
            "actions": self.actions.shape == (n,),
            "outcomes": self.outcomes.ndim == 2 and self.outcomes.shape[0] == n and self.outcomes.shape[1] >= 1,
            "seen": self.seen.shape == self.outcomes.shape,
            "groups": self.groups.shape == (n,),
            "logged": self.logged.ndim == 2 and self.logged.shape[0] == n and self.logged.shape[1] >= 2,
        }
        wrong = [name for name, right in shapes.items() if not right]
        if wrong:
            raise BadInput(f"the table's {wrong[0]} do not fit {n} decisions: shape {getattr(self, wrong[0]).shape}")

    def __len__(self) -> int:
        """Count the decisions."""
        return len(self.covariates)

    @property
    def arms(self) -> int:
        """L, the number of actions."""
        return int(self.logged.shape[1])

    @property
    def stages(self) -> int:
        """K, the number of outcomes."""
        return int(self.outcomes.shape[1])

    @property
    def complete(self) -> Mask:
        """Where the long-term outcome was seen: [n]."""
        return self.seen[:, -1]

    def history(self, stage: int) -> Array:
        """Return what is known before a stage, counted from 0: X and the outcomes of earlier stages, [n, p + stage]."""
        return np.hstack([self.covariates, self.outcomes[:, :stage]])

    def rows(self, chosen: Mask | Whole) -> DecisionTable:
        """Return the table of some of the decisions."""
        return replace(
            self,
            covariates=self.covariates[chosen],
            actions=self.actions[chosen],
            outcomes=self.outcomes[chosen],
            seen=self.seen[chosen],
            groups=self.groups[chosen],
            logged=self.logged[chosen],
        )

    def until(self, stage: int) -> DecisionTable:
        """Return the table as if the outcome of a stage, counted from 0, were the long-term one."""
        return replace(self, outcomes=self.outcomes[:, : stage + 1], seen=self.seen[:, : stage + 1])

    def last_only(self) -> DecisionTable:
        """Return the table without short-term outcomes, as estimators see it that ignore them."""
        return replace(self, outcomes=self.outcomes[:, -1:], seen=self.seen[:, -1:])
