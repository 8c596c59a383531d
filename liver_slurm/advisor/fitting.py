"""From a table of decisions to a model with its verdict, and the value of rules on a table."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from liver_slurm.advisor import contributions
from liver_slurm.advisor.contributions import Contributions
from liver_slurm.advisor.diagnostics import differences
from liver_slurm.advisor.folds import by_group
from liver_slurm.advisor.gate import Verdict, Way, judge, too_few
from liver_slurm.advisor.horizon import Looked
from liver_slurm.advisor.intervals import Estimated
from liver_slurm.advisor.learners import linear_learners, logistic
from liver_slurm.advisor.model import Bin, Horizon, Model, Weight, Worth
from liver_slurm.advisor.preparing import ACTIONS, Prepared, Wish, prepare
from liver_slurm.advisor.rows import Rows
from liver_slurm.advisor.rules import CLASSES, both, document
from liver_slurm.advisor.sensitivity import lost_shares, tipping_both, tipping_concept
from liver_slurm.advisor.shift import density_ratio
from liver_slurm.advisor.stages import fit_nuisances
from liver_slurm.advisor.summary import LEARNED, figure, overlap, simple_rules
from liver_slurm.base.errors import BadInput


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
