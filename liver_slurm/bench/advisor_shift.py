"""Part of ``bench advisor``: values and rules for a domain of which only covariates are known."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from liver_slurm.advisor import contributions
from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.contributions import Contributions
from liver_slurm.advisor.gate import Domain, Way, judge
from liver_slurm.advisor.learners import Learners, hinges, linear_learners, logistic, ridge, through
from liver_slurm.advisor.rules import CLASSES, Rule, always, chances, never
from liver_slurm.advisor.shift import density_ratio
from liver_slurm.advisor.stages import fit_nuisances
from liver_slurm.advisor.synthetic_partition import LOGGED as CHANCE
from liver_slurm.advisor.synthetic_partition import REGIMES, WINDOWS, Regime, away, goodput, interactions, log, simulate
from liver_slurm.advisor.synthetic_shift import BENT, LINEAR, TwoDomains, fixed_policy, shifted, true_reward
from liver_slurm.bench.advisor_missing import WRONG, learners

SIZES, SHIFTS = (250, 1_000, 6_000), (0.0, 0.7, 1.2)
USUAL_SIZE, USUAL_SHIFT = 1_000, 0.7
LOGGED, ELSEWHERE = 2_000, 1_000
"""Decisions of a log of the toy partition, and covariates of the other one."""
FRESH = 1_000
"""Seed of its first log: the gate's limits were set by looking at logs of seeds below."""
TWINS = 20_000
"""Decisions of which the oracle knows what comes of both actions."""


def rewards(repetitions: int) -> list[dict[str, Any]]:
    """Estimate a fixed policy's value in the target: by model, by number of decisions, by shift."""
    both_wrong = {"both wrong": (True, True)}
    settings = [(USUAL_SIZE, USUAL_SHIFT, models) for models in WRONG | both_wrong]
    settings += [(size, USUAL_SHIFT, "both right") for size in SIZES if size != USUAL_SIZE]
    settings += [(USUAL_SIZE, shift, "both right") for shift in SHIFTS if shift != USUAL_SHIFT]
    cases = []
    for size, shift, models in settings:
        truth = true_reward(fixed_policy, LINEAR, shift)
        how = learners(4, *(WRONG | both_wrong)[models])
        found: dict[str, list[float]] = {}
        covered = []
        for seed in range(repetitions):
            one = shifted(size, size, np.random.default_rng(seed), shift, LINEAR)
            terms = _terms(one, how)
            policy = chances(fixed_policy, np.vstack([one.table.covariates, one.target]))
            for name, each in terms.items():
                found.setdefault(name, []).append(each.value(policy).value - truth)
            found.setdefault("SE normalised", []).append(terms["SE"].normalised(policy) - truth)
            low, high = terms["SE"].value(policy).interval()
            covered.append(low <= truth <= high)
        part = f"reward elsewhere, n {size}, shift {shift:g}, {models}"
        cases += [
            {
                "part": part,
                "name": name,
                "bias": statistics.fmean(off),
                "sd": statistics.stdev(off),
                "median |error|": statistics.median(map(abs, off)),
                "95 % covers": statistics.fmean(covered) if name == "SE" else None,
            }
            for name, off in found.items()
        ]
    return cases


def rules(repetitions: int) -> list[dict[str, Any]]:
    """Learn rules for the target from each estimate; the effect is bent, models and rules are linear or bend, too."""
    bent = replace(linear_learners(), regressions=(through(hinges((-1.0, 0.0, 1.0, 2.0)), ridge),))
    cases = []
    for name, how in (("linear", linear_learners()), ("hinge", bent)):
        for size in (USUAL_SIZE, SIZES[-1]):
            found: dict[str, list[tuple[float, float, float]]] = {}
            for seed in range(repetitions):
                one = shifted(size, size // 2, np.random.default_rng(seed), USUAL_SHIFT, BENT)
                for method, taken in _learned(one, how, name).items():
                    found.setdefault(method, []).append(_judged(one, taken))
            part = f"rule elsewhere, n {size}, shift {USUAL_SHIFT:g}, {name} models and rules"
            for method, each in found.items():
                regret, wrong, welfare = (statistics.fmean(column) for column in zip(*each, strict=True))
                row = {"part": part, "name": method, "regret": regret, "share wrong": wrong, "welfare a row": welfare}
                cases.append(row | {"regret sd": statistics.stdev(one[0] for one in each)})
    return cases


def partitions(logs: int) -> list[dict[str, Any]]:
    """Learn from logs of a toy partition and let the rule decide every offer on another one."""
    way = Way(learners=Learners(logistic, (logistic,), (through(interactions, ridge),)))
    runs = away(4_000, np.random.default_rng(99))
    cases = []
    for name, regime in REGIMES.items():
        greedy = goodput(always, regime, runs)
        bare, gated, opened = [], [], 0
        for seed in range(FRESH, FRESH + logs):
            random = np.random.default_rng(seed)
            table = log(LOGGED, regime, random).until(1)
            target = Domain(away(ELSEWHERE, random).covariates(regime), np.arange(ELSEWHERE))
            verdict = judge(table, way, target)
            opened += verdict.opens
            bare.append(goodput(verdict.rule, regime, runs))
            gated.append(bare[-1] if verdict.opens else greedy)
        part = f"toy partition, {LOGGED} decisions"
        told: list[tuple[str, Sequence[float], float | None]] = [
            ("greedy", [greedy], None),
            ("never", [goodput(never, regime, runs)], None),
            ("oracle for one decision", [goodput(oracle(regime), regime, runs)], None),
            ("learned, no gate", bare, None),
            ("learned, gate", gated, opened / logs),
        ]
        cases += [
            {
                "part": part,
                "regime": name,
                "name": who,
                "goodput": statistics.fmean(one),
                "worst": min(one),
                "open": share,
            }
            for who, one, share in told
        ]
    return cases


def oracle(regime: Regime) -> Rule:
    """Return the rule that takes where taking gains on average within an hour, as twins with the same luck tell."""
    logging: Rule = lambda rows: np.full(len(rows), CHANCE)  # noqa: E731
    runs, gains = away(TWINS, np.random.default_rng(98)), []
    for action in (False, True):
        alike = np.random.default_rng(97)
        gains.append(simulate(runs, regime, logging, alike, first=np.full(TWINS, action))[:, WINDOWS.index(60)])
    x = runs.covariates(regime)
    effect = through(interactions, ridge)(x, gains[1] - gains[0], np.ones(TWINS))
    return lambda rows: (effect(rows) > 0.0).astype(np.float64)


def _terms(one: TwoDomains, how: Learners) -> dict[str, Contributions]:
    """Return the contributions of each estimator of a value in the target."""
    groups = np.arange(len(one.target))
    fitted = fit_nuisances(one.table, how, target=one.target)
    ratio = density_ratio(one.table.covariates, one.target, how.propensity).source
    efficient = contributions.there(one.table, fitted, ratio, groups)
    weighting = contributions.there(one.table, contributions.weighting_only(one.table, fitted), ratio, groups)
    return {"Direct": efficient.without_residuals(), "IPW": weighting, "SE": efficient}


def _learned(one: TwoDomains, how: Learners, name: str) -> Mapping[str, Array]:
    """Return what the rule of each method takes of the target's rows."""
    learn = CLASSES[name]
    pooled = np.vstack([one.table.covariates, one.target])
    found = {}
    for method, terms in _terms(one, how).items():
        gains = terms.gamma[:, 1] - terms.gamma[:, 0]
        used = terms.gamma.any(axis=1)
        found[method] = learn(pooled[used], gains[used])(one.target)
    at_home = contributions.here(one.table, fit_nuisances(one.table, how)).gamma
    found["source alone"] = learn(one.table.covariates, at_home[:, 1] - at_home[:, 0])(one.target)
    effects = fit_nuisances(one.table, how, target=one.target).target
    found["plug-in, no class"] = (effects[:, 1] > effects[:, 0]).astype(np.float64)
    return found


def _judged(one: TwoDomains, taken: Array) -> tuple[float, float, float]:
    """Return regret against the best rule of all, the share of rows that are decided otherwise, and what is gained."""
    effects = one.surfaces.effect(one.target)
    best = (effects > 0.0).astype(np.float64)
    return one.reward(best) - one.reward(taken), float(np.abs(best - taken).mean()), float((taken * effects).mean())
