"""Part of ``bench advisor``: effects where decisions drop out before their long-term outcome is seen."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.estimators import FITTED, Effects, ipw, seq_dr, seq_msm_a
from liver_slurm.advisor.learners import Learner, Learners, linear_learners, logistic, ridge, through
from liver_slurm.advisor.stages import fit_nuisances
from liver_slurm.advisor.synthetic import MILD, SEVERE, dropping_out, nonlinear_view
from liver_slurm.advisor.synthetic_covariates import drawn_on, read
from liver_slurm.advisor.table import DecisionTable

DECISIONS = 1_000
WRONG = {"both right": (False, False), "outcome wrong": (True, False), "weights wrong": (False, True)}
"""Which models see nonlinear transforms of the covariates instead of these: of outcomes, of weights."""
RATES, CARRIED = (0.2, 0.35, 0.5), (0.02, 0.6)
"""Shares of long-term outcomes that are missing, and shares of earlier outcomes in later ones."""
BALANCED, APART = (0.0, 3.0), (0.0, 0.3)
"""Weights of the imbalance in the loss of both readings of BalanceNet; 0: none."""


def learners(covariates: int, outcome: bool, weights: bool) -> Learners:
    """Return linear learners, of which those said to be wrong see nonlinear transforms of so many first columns."""

    def blurred(learner: Learner) -> Learner:
        def view(history: Array) -> Array:
            return np.hstack([nonlinear_view(history[:, :covariates]), history[:, covariates:]])

        return through(view, learner)

    chance = blurred(logistic) if weights else logistic
    return Learners(chance, (chance,), (blurred(ridge) if outcome else ridge,))


def simulated(repetitions: int, networks: int) -> list[dict[str, Any]]:
    """Compare on the simulated design, mild and severe; networks on the first so many tables, with right models."""
    cases = []
    for name, intercept in (("mild", MILD), ("severe", SEVERE)):
        for models, (outcome, weights) in WRONG.items():
            how = learners(5, outcome, weights)
            found = []
            for seed in range(repetitions):
                drawn = dropping_out(DECISIONS, np.random.default_rng(seed), intercept)
                found.append(_errors(_fitted(drawn.table, how), drawn.effects, drawn.truth))
            cases += _summary(f"missing outcomes, {name}, n {DECISIONS}, {models}", found)
        if networks:
            found = []
            for seed in range(networks):
                drawn = dropping_out(DECISIONS, np.random.default_rng(seed), intercept)
                both = _networks(drawn.table) | _fitted(drawn.table, linear_learners())
                found.append(_errors(both, drawn.effects, drawn.truth))
            cases += _summary(f"networks and the same tables, {name}, n {DECISIONS}", found)
    return cases


def on_covariates(path: Path, repetitions: int) -> list[dict[str, Any]]:
    """Compare on covariates of a file, at several rates, with short-term outcomes that tell much or nothing."""
    x, actions = read(path)
    cases = []
    for carried in CARRIED:
        for rate in RATES:
            found = []
            for seed in range(repetitions):
                table, effects = drawn_on(x, actions, np.random.default_rng(seed), carried=carried, missing=rate)
                found.append(_errors(_fitted(table, linear_learners()), effects, float(effects.mean())))
            cases += _summary(f"covariates of {path.name}, {rate:.0%} missing, {carried:g} carried on", found)
    return cases


def _fitted(table: DecisionTable, how: Learners) -> dict[str, Effects]:
    plain, weighted = fit_nuisances(table, how), fit_nuisances(table, how, weighted=True)
    found = {name: make(table, plain, weighted, how, ridge) for name, make in FITTED.items()}
    blind = table.last_only()
    found["IPW that ignores S"] = ipw(blind, fit_nuisances(blind, how), ridge)
    return found


def _networks(table: DecisionTable) -> dict[str, Effects]:
    from liver_slurm.advisor.balance import Training, balanced_representation, balanced_weights

    plain = fit_nuisances(table, linear_learners())
    found = {}
    for balance in BALANCED:
        weighted = balanced_weights(table, plain, Training(balance=balance))
        found[f"W {balance:g}, SeqMSM A"] = seq_msm_a(table, weighted, ridge)
        found[f"W {balance:g}, SeqDR"] = seq_dr(table, weighted, ridge)
    for balance in APART:
        found[f"R {balance:g}"] = balanced_representation(table, Training(balance=balance))[0]
    return found


def _errors(found: Mapping[str, Effects], effects: Array, truth: float) -> dict[str, dict[str, float]]:
    errors = {}
    for name, one in found.items():
        errors[name] = {"off": one.effect - truth, "pehe": float(np.sqrt(np.mean((one.effects - effects) ** 2)))}
        if one.estimated is not None:
            low, high = one.estimated.interval()
            errors[name]["covered"] = float(low <= truth <= high)
    return errors


def _summary(part: str, found: Iterable[Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Sum up each method's errors over repetitions."""
    rows = list(found)
    cases = []
    for name in rows[0]:
        off = [row[name]["off"] for row in rows]
        covered = [row[name]["covered"] for row in rows if "covered" in row[name]]
        cases.append(
            {
                "part": part,
                "name": name,
                "bias": statistics.fmean(off),
                "sd": statistics.stdev(off),
                "median |error|": statistics.median(map(abs, off)),
                "median root PEHE": statistics.median(row[name]["pehe"] for row in rows),
                "95 % covers": statistics.fmean(covered) if covered else None,
            }
        )
    return cases
