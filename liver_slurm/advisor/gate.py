"""The honest gate: a learned rule is advice only if it is surely better than the baseline on runs unseen by it.

The value of a rule on the data that it was learned from is too high: what was noise there has been learned, too. Here a
rule is learned once for each fold without that fold's runs, nuisances included, and judged on that fold's runs with the
efficient estimate. The rule that is handed out is learned from all runs; its class and its way of learning are what was
judged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from liver_slurm.advisor import contributions
from liver_slurm.advisor.arrays import Array, Labels, Whole
from liver_slurm.advisor.contributions import Contributions
from liver_slurm.advisor.diagnostics import Support, support
from liver_slurm.advisor.folds import by_group, one_fold
from liver_slurm.advisor.intervals import Estimated
from liver_slurm.advisor.learners import Learner, Learners, linear_learners, logistic
from liver_slurm.advisor.rules import Learn, Rule, always, both, linear
from liver_slurm.advisor.shift import Ratio, density_ratio
from liver_slurm.advisor.stages import Nuisances, fit_nuisances
from liver_slurm.advisor.table import DecisionTable
from liver_slurm.base.errors import BadInput

FEW_COMPLETE, FEW_RUNS, FEW_A_COVARIATE, FEW_DIFFERING = 50, 20, 10, 50
"""Fewest complete cases of each action, runs, complete cases for each covariate, and decisions of each action where the
rule and the baseline differ: below, no verdict is worth its words."""
DID = ("leave", "take")
"""The two actions, for people."""


@dataclass(frozen=True)
class Domain:
    """A target domain: covariates, and the run of each row."""

    covariates: Array
    groups: Labels


@dataclass(frozen=True)
class Way:
    """How a rule is learned and judged."""

    learners: Learners = field(default_factory=linear_learners)
    domains: Learner = logistic
    """What tells the domains apart."""
    learn: Learn = linear
    by: Literal["plug-in", "efficient"] = "plug-in"
    """From which gains: those that the regressions say, which have the least noise, or the efficient ones."""
    folds: int = 5
    level: float = 0.95
    """Of the one-sided interval that must exclude no gain."""
    baseline: Rule = always
    baseline_name: str = "take always"


@dataclass(frozen=True)
class Verdict:
    """What is said of a learned rule."""

    opens: bool
    """The rule is surely better than the baseline."""
    rule: Rule
    """The learned rule, whatever is said of it."""
    gain: Estimated | None
    """Over the baseline, a decision, judged without the own fold; None: too few data to estimate it."""
    differing: tuple[int, ...]
    """Decisions of each action where the judged rules and the baseline differ."""
    support: Support | None
    words: str


def judge(table: DecisionTable, way: Way, target: Domain | None = None) -> Verdict:
    """Learn a rule from all decisions, and judge its way of learning on folds that each of its rules has not seen.

    Raises:
        BadInput: there are other than two actions, or an action has no complete case.
    """
    if table.arms != 2:
        raise BadInput(f"rules are learned for two actions, to leave and to take; the table has {table.arms}")
    scarce = too_few(table)
    if scarce:
        return Verdict(False, way.baseline, None, (0, 0), None, f"{way.baseline_name}: too few data, {scarce}")
    folds = by_group(table.groups, way.folds)
    target_folds = _target_folds(target, way.folds)
    judged, fitted, ratio = _contributions(table, way, target, folds, target_folds)
    rows = _rows(table, target)
    row_folds = np.concatenate([folds, target_folds])

    taken = np.empty(len(rows))
    for fold in range(way.folds):
        inside = row_folds == fold
        taken[inside] = _learned(table.rows(folds != fold), way, _without(target, target_folds, fold))(rows[inside])
    before = way.baseline(rows)
    gain = judged.gain(both(taken), both(before))
    differs = np.abs(taken - before)[: len(table)] > 0.5
    differing = tuple(int((differs & (table.actions == arm)).sum()) for arm in range(2))
    supported = support(table, fitted, ratio)
    rule = _learned(table, way, target)
    opens, words = _verdict(table, way, gain, differing, supported)
    return Verdict(opens, rule, gain, differing, supported, words)


def too_few(table: DecisionTable) -> str:
    """Say why a table of two actions has too few data for a verdict; empty: it has enough."""
    complete = [int((table.complete & (table.actions == arm)).sum()) for arm in range(table.arms)]
    runs, covariates = len(np.unique(table.groups)), table.covariates.shape[1]
    if min(complete) < FEW_COMPLETE:
        scarce = int(np.argmin(complete))
        return f"{complete[scarce]} decisions to {DID[scarce]} have a long-term outcome, {FEW_COMPLETE} are needed"
    if runs < FEW_RUNS:
        return f"{runs} runs, {FEW_RUNS} are needed"
    if sum(complete) < FEW_A_COVARIATE * covariates:
        return f"{sum(complete)} long-term outcomes for {covariates} covariates, {FEW_A_COVARIATE} for each are needed"
    return ""


def _verdict(
    table: DecisionTable, way: Way, gain: Estimated, differing: tuple[int, ...], supported: Support
) -> tuple[bool, str]:
    low, high = gain.interval(2 * way.level - 1)
    counted = f"{len(table)} decisions of {len(np.unique(table.groups))} runs"
    told = f"gain over it {low:+.1f} to {high:+.1f} a decision, {counted}"
    objections = supported.objections()
    if objections:
        return False, f"{way.baseline_name}: {'; '.join(objections)} ({counted})"
    if min(differing) < FEW_DIFFERING:
        scarce = int(np.argmin(differing))
        return False, (
            f"{way.baseline_name}: no difference that the data could show, for the rule and it differ in "
            f"{differing[scarce]} decisions to {DID[scarce]}, {FEW_DIFFERING} are needed ({counted})"
        )
    if gain.at_least(way.level) <= 0.0:
        return False, f"{way.baseline_name}: no rule is surely better ({told})"
    return True, f"the learned rule is better than to {way.baseline_name} ({told})"


def _contributions(
    table: DecisionTable, way: Way, target: Domain | None, folds: Whole, target_folds: Whole
) -> tuple[Contributions, Nuisances, Ratio | None]:
    if target is None:
        fitted = fit_nuisances(table, way.learners, folds)
        return contributions.here(table, fitted), fitted, None
    fitted = fit_nuisances(table, way.learners, folds, target=target.covariates, target_folds=target_folds)
    ratio = density_ratio(table.covariates, target.covariates, way.domains, folds, target_folds).capped()
    return contributions.there(table, fitted, ratio.source, target.groups), fitted, ratio


def _learned(table: DecisionTable, way: Way, target: Domain | None) -> Rule:
    """Learn a rule from all of a table, nuisances included."""
    target_folds = one_fold(0 if target is None else len(target.covariates))
    found, _, _ = _contributions(table, way, target, one_fold(len(table)), target_folds)
    found = found.without_residuals() if way.by == "plug-in" else found
    used = np.ones(len(found.counted), dtype=bool) if way.by == "efficient" else found.counted > 0.0
    gains = found.gamma[:, 1] - found.gamma[:, 0]
    return way.learn(_rows(table, target)[used], gains[used])


def _rows(table: DecisionTable, target: Domain | None) -> Array:
    return table.covariates if target is None else np.vstack([table.covariates, target.covariates])


def _target_folds(target: Domain | None, folds: int) -> Whole:
    return one_fold(0) if target is None else by_group(target.groups, folds, seed=1)


def _without(target: Domain | None, folds: Whole, fold: int) -> Domain | None:
    return None if target is None else Domain(target.covariates[folds != fold], target.groups[folds != fold])
