"""From a table of decisions to a model with its verdict, and the value of rules on a table."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

import numpy as np

from liver_slurm.advisor import contributions
from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.contributions import Contributions
from liver_slurm.advisor.diagnostics import differences
from liver_slurm.advisor.folds import by_group
from liver_slurm.advisor.gate import Domain, Verdict, Way, judge, too_few
from liver_slurm.advisor.horizon import Chosen, Looked, choose
from liver_slurm.advisor.intervals import Estimated
from liver_slurm.advisor.learners import linear_learners, logistic
from liver_slurm.advisor.model import Bin, Column, Horizon, Model, Weight, Worth
from liver_slurm.advisor.rows import Row, Rows
from liver_slurm.advisor.rules import CLASSES, both, document
from liver_slurm.advisor.sensitivity import lost_shares, tipping_both, tipping_concept
from liver_slurm.advisor.shift import density_ratio
from liver_slurm.advisor.stages import fit_nuisances
from liver_slurm.advisor.summary import LEARNED, figure, overlap, simple_rules
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


@dataclass(frozen=True)
class Valued:
    """What a rule is worth on a table, in seconds gained a decision."""

    name: str
    value: Estimated
    gain: Estimated
    """Over to take always."""
    taken: float
    """Share of decisions."""
    note: str = ""


def need_libraries() -> None:
    """Say in one line what is not installed.

    Raises:
        BadInput: something is not.
    """
    missing = [name for name in ("sklearn", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"advisor: {', '.join(missing)} not installed; pip install 'liver-slurm[advisor]'")


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


def fit(rows: Rows, target: Rows | None, wish: Wish, now: float) -> Model:
    """Learn a rule and judge it.

    Args:
        rows: decisions with outcomes.
        target: offers of another partition, of which outcomes are not looked at; None: the rule is for here.
        wish: how.
        now: seconds since the epoch.

    Raises:
        BadInput: there is nothing to learn from.
    """
    ready = prepare(rows, target, wish)
    table = ready.table
    way = _way(wish)
    verdict = judge(table, way, ready.target)
    notes = list(ready.notes)
    effect: Estimated | None = None
    lost = concept = None
    worth: tuple[Worth, ...] = ()
    bins: tuple[Bin, ...] = ()
    if not too_few(table):
        fitted = fit_nuisances(table, way.learners, by_group(table.groups, wish.folds))
        here = contributions.here(table, fitted)
        effect = here.effect()
        terms = here if ready.target is None else _contributions(ready, replace(wish, folds=_folds(ready, wish)))
        worth = (*_simple(ready, terms), _of_rule(ready, verdict))
        bins = overlap(table, here, terms if ready.target is not None else None)
        lost = abs(tipping_both(effect.value, lost_shares(table, fitted)))
    if verdict.gain is not None and ready.target is not None:
        differs = float(np.abs(verdict.rule(ready.target.covariates) - 1.0).mean())
        concept = tipping_concept(verdict.gain.at_least(way.level), differs)
        notes += _apart(ready)
    return Model(
        features_version=rows.header.features_version,
        columns=ready.columns,
        rule=document(verdict.rule),
        advises=verdict.opens,
        verdict=verdict.words,
        window_s=ready.window_s,
        rule_class=wish.rule_class,
        learned_by=wish.learn_by,
        decisions=len(table),
        runs=len(np.unique(table.groups)),
        target_decisions=len(ready.target_rows),
        gain=figure(verdict.gain),
        effect=figure(effect),
        weights=_weights(verdict),
        clipped=verdict.support.clipped if verdict.support is not None else (),
        outside=verdict.support.outside if verdict.support is not None else 0.0,
        tipping_lost_s=lost if lost is not None and np.isfinite(lost) else None,
        tipping_concept_s=concept if concept is not None and np.isfinite(concept) else None,
        worth=worth,
        horizons=tuple(map(_horizon, ready.horizon.looked)),
        horizon=ready.horizon.why,
        overlap=bins,
        tables=(*rows.digests, *(target.digests if target is not None else ())),
        notes=tuple(notes),
        written=now,
    )


def evaluate(rows: Rows, target: Rows | None, models: Mapping[str, Model], wish: Wish) -> tuple[Prepared, list[Valued]]:
    """Estimate the value of taking always, of leaving always, and of models, by the efficient estimate.

    A model that was learned from one of the files is learned again for each fold without the runs of that fold.

    Raises:
        BadInput: there is nothing to compare, or too few runs.
    """
    ready = prepare(rows, target, wish)
    terms = _contributions(ready, replace(wish, folds=_folds(ready, wish)))
    pooled = (*ready.used, *ready.target_rows)
    rules = simple_rules(pooled)
    for name, model in models.items():
        rules[name] = np.array([float(model.takes(model.values(row.features))) for row in pooled])
    counted = terms.counted > 0.0
    found = []
    for name, taken in rules.items():
        gain, note = terms.gain(both(taken), both(np.ones(len(pooled)))), ""
        if name in models and set(models[name].tables) & set(rows.digests):
            again = replace(wish, rule_class=models[name].rule_class)
            gained = judge(ready.table, _way(again), ready.target).gain
            note = "learned from this table: its gain is that of rules learned without the runs they are judged by"
            gain = gained if gained is not None else gain
        found.append(Valued(name, terms.value(both(taken)), gain, float(taken[counted].mean()), note))
    return ready, found


def _simple(ready: Prepared, terms: Contributions) -> tuple[Worth, ...]:
    """Value the policies that nothing has to be learned for."""
    pooled, counted = (*ready.used, *ready.target_rows), terms.counted > 0.0
    always = both(np.ones(len(pooled)))
    return tuple(
        Worth(
            name=name,
            taken=float(taken[counted].mean()),
            value=figure(terms.value(both(taken))),
            gain=figure(terms.gain(both(taken), always)),
        )
        for name, taken in simple_rules(pooled).items()
    )


def _of_rule(ready: Prepared, verdict: Verdict) -> Worth:
    rows = ready.table.covariates if ready.target is None else ready.target.covariates
    return Worth(name=LEARNED, taken=float(verdict.rule(rows).mean()), gain=figure(verdict.gain))


def _horizon(looked: Looked) -> Horizon:
    effect, rest = figure(looked.effect), figure(looked.behind[-1].rest) if looked.behind else None
    return Horizon(window_s=looked.window_s, seen=looked.seen, effect=effect, rest=rest)


def _way(wish: Wish) -> Way:
    return Way(learn=CLASSES[wish.rule_class], by=wish.learn_by, folds=wish.folds)


def _folds(ready: Prepared, wish: Wish) -> int:
    """Return the number of folds that the runs of both domains suffice for."""
    groups = [ready.table.groups] + ([ready.target.groups] if ready.target is not None else [])
    fewest = min(len(np.unique(each)) for each in groups)
    if fewest < 2:
        raise BadInput(f"decisions are of {fewest} run: its value cannot be told from chance; collect more runs")
    return min(wish.folds, fewest)


def _contributions(ready: Prepared, wish: Wish) -> Contributions:
    table, target, learners = ready.table, ready.target, linear_learners()
    folds = by_group(table.groups, wish.folds)
    if target is None:
        return contributions.here(table, fit_nuisances(table, learners, folds))
    there = by_group(target.groups, wish.folds, seed=1)
    fitted = fit_nuisances(table, learners, folds, target=target.covariates, target_folds=there)
    ratio = density_ratio(table.covariates, target.covariates, logistic, folds, there).capped()
    return contributions.there(table, fitted, ratio.source, target.groups)


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
        only = f"always does the same ({', '.join(actions)})" if actions else "decides nothing at random"
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


def _apart(ready: Prepared) -> list[str]:
    """Say which columns separate the domains most."""
    assert ready.target is not None
    gaps = differences(ready.table.covariates, ready.target.covariates)
    most = [index for index in np.argsort(-np.abs(gaps))[:3] if abs(gaps[index]) > 0.2]
    told = ", ".join(f"{ready.columns[index].feature} ({gaps[index]:+.1f} sd)" for index in most)
    return [f"the target differs most in {told}"] if most else []


def _weights(verdict: Verdict) -> tuple[Weight, ...]:
    if verdict.support is None:
        return ()
    return tuple(
        Weight(
            action=action, decisions=arm.decisions, complete=arm.complete, effective=arm.effective, largest=arm.largest
        )
        for action, arm in zip(ACTIONS, verdict.support.arms, strict=True)
    )
