"""From rows of decisions to arrays: which decisions can be learned from, their columns, and the outcome that counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import numpy as np

from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.gate import Domain
from liver_slurm.advisor.horizon import Chosen, choose
from liver_slurm.advisor.learners import linear_learners
from liver_slurm.advisor.model import Column
from liver_slurm.advisor.rows import Row, Rows
from liver_slurm.advisor.rules import both
from liver_slurm.advisor.table import DecisionTable
from liver_slurm.base.errors import BadInput

ACTIONS = ("leave", "take")


OWN_DOING = ("log_stay_s", "saved_s", "taken_1h", "offers_1h", "log_life_s", "log_unsaved_s", "log_since_resize_s")
"""Features that a run's own decisions make: who leaves sees nodes neither stay nor go. A rule that was learned from
them in the logs of one policy meets others once it decides itself, and may leave for ever."""


SAME = 0.9999
"""Columns that are correlated like this say the same: the first one stays."""


@dataclass(frozen=True)
class Wish:
    """How a rule is to be learned."""

    rule_class: str = "linear"
    learn_by: Literal["plug-in", "efficient"] = "plug-in"
    window_s: float | None = None
    """Outcome that counts; None: the one that :mod:`liver_slurm.advisor.horizon` chooses."""
    features: tuple[str, ...] | None = None
    """None: all but those of :data:`OWN_DOING`."""
    folds: int = 5


@dataclass(frozen=True)
class Prepared:
    """A table as arrays."""

    table: DecisionTable
    columns: tuple[Column, ...]
    horizon: Chosen
    used: tuple[Row, ...]
    target: Domain | None
    target_rows: tuple[Row, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def window_s(self) -> float:
        """Of the outcome that counts."""
        return self.horizon.looked[self.horizon.stage].window_s


def prepare(rows: Rows, target: Rows | None, wish: Wish) -> Prepared:
    """Choose the decisions that can be learned from, the columns, and the outcome.

    Raises:
        BadInput: there is nothing to compare, or the tables or the wish do not fit.
    """
    notes: list[str] = []
    if rows.doubled:
        notes.append(f"{rows.doubled} decisions were in the table twice")
    used = _usable(rows, notes)
    if target is not None and target.header.features_version != rows.header.features_version:
        raise BadInput("the target's features are of another version than the table's; collect both again")
    columns, values = _columns(used, wish.features, notes)
    outcomes = np.array([[np.nan if gain is None else gain for gain in row.gain_s] for row in used])
    table = DecisionTable(
        covariates=values,
        actions=np.array([ACTIONS.index(row.action) for row in used]),
        outcomes=outcomes,
        seen=~np.isnan(outcomes),
        groups=np.array([row.run for row in used]),
        logged=_logged(used, notes),
    )
    windows, life = rows.header.windows_s, _usual_life(used)
    chosen = choose(table, windows, linear_learners(), wish.folds, wanted=wish.window_s, life_s=life)
    domain: Domain | None = None
    elsewhere: tuple[Row, ...] = ()
    if target is not None:
        elsewhere = target.rows
        there = np.array([[column.value(row.features) for column in columns] for row in elsewhere])
        domain = Domain(there.reshape(len(elsewhere), len(columns)), np.array([row.run for row in elsewhere]))
    return Prepared(table.until(chosen.stage), columns, chosen, used, domain, elsewhere, notes)


def _usable(rows: Rows, notes: list[str]) -> tuple[Row, ...]:
    """Return the decisions that can be learned from.

    Raises:
        BadInput: there are none, or nothing to compare.
    """
    followed = rows.followed
    policies = sorted({row.policy for row in followed or rows.rows})
    advice = "collect from runs of standby.policy explore"
    if not rows.rows:
        raise BadInput(f"the table has no decisions; {advice}")
    if not followed:
        raise BadInput(f"policy {', '.join(policies)} states no chance, so that nothing can be compared; {advice}")
    if len(policies) > 1:
        raise BadInput(f"decisions of policies {', '.join(policies)} are mixed; collect a table of each")
    drawn = tuple(row for row in followed if row.propensity not in (0.0, 1.0))
    if len(drawn) < len(followed):
        notes.append(f"{len(followed) - len(drawn)} decisions were certain, and are left out")
    actions = {row.action for row in drawn}
    if actions != set(ACTIONS):
        only = f"always does the same ({', '.join(actions)})" if actions else "decides nothing by lot"
        raise BadInput(f"policy {policies[0]} {only}: nothing to compare; {advice}")
    return drawn


def _usual_life(used: Sequence[Row]) -> float:
    """Return the median of what these offers knew of nodes' lives, in seconds; 0.0: nothing."""
    lives = [row.features.get("log_life_s") for row in used]
    known = [life for life in lives if life is not None]
    return math.expm1(median(known)) if known else 0.0


def _logged(used: Sequence[Row], notes: list[str]) -> Array:
    own = np.array([np.nan if row.propensity is None else row.propensity for row in used])
    taken = np.array([row.action == "take" for row in used])
    if np.isnan(own).any():
        notes.append(f"{int(np.isnan(own).sum())} decisions have no chance logged: it is estimated")
    return both(np.where(taken, own, 1.0 - own))


def _columns(used: Sequence[Row], wanted: Sequence[str] | None, notes: list[str]) -> tuple[tuple[Column, ...], Array]:
    """Make columns of features; those that say nothing, or what another one says, are dropped with a word."""
    names = list(used[0].features)
    if wanted is not None:
        if unknown := [name for name in wanted if name not in names]:
            raise BadInput(f"there is no feature {', '.join(unknown)}; known: {', '.join(names)}")
        names = [name for name in names if name in wanted]
    elif own := [name for name in names if name in OWN_DOING]:
        names = [name for name in names if name not in OWN_DOING]
        notes.append(f"left out, as a run's own decisions make them (--features takes them in): {', '.join(own)}")
    columns: list[Column] = []
    values: list[Array] = []
    constant, same = [], []
    for name in names:
        given = [row.features.get(name) for row in used]
        known = np.array([one for one in given if one is not None])
        if len(known) and np.ptp(known) > 0.0:
            column = Column(
                feature=name,
                fill=float(known.mean()),
                low=float(known.min()),
                high=float(known.max()),
                sd=float(known.std()),
            )
            found = np.array([column.value(row.features) for row in used])
            if any(abs(np.corrcoef(found, other)[0, 1]) > SAME for other in values):
                same.append(name)
            else:
                columns.append(column)
                values.append(found)
        elif len(known) in (0, len(used)):
            constant.append(name)
        if 0 < len(known) < len(used):
            flag = np.array([float(one is None) for one in given])
            if not any(abs(np.corrcoef(flag, other)[0, 1]) > SAME for other in values):
                columns.append(Column(feature=name, missing=True, fill=float(flag.mean()), high=1.0))
                values.append(flag)
    if not columns:
        raise BadInput("no feature differs between decisions, so no rule can be learned; collect more runs")
    for what, dropped in (("the same in all decisions, or unknown", constant), ("as good as equal to another", same)):
        if dropped:
            notes.append(f"left out, {what}: {', '.join(dropped)}")
    return tuple(columns), np.column_stack(values)
