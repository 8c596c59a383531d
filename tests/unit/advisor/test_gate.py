"""The gate: advice only where it is sure, and where it is judged by runs that the rule was not learned from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from liver_slurm.advisor import gate
from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.folds import by_group
from liver_slurm.advisor.gate import Domain, Verdict, Way, judge, too_few
from liver_slurm.advisor.intervals import Estimated
from liver_slurm.advisor.learners import Learners, logistic, ridge, through
from liver_slurm.advisor.rules import Rule, always, chances, linear, never
from liver_slurm.advisor.synthetic_partition import REGIMES, away, goodput, interactions, log
from liver_slurm.advisor.table import DecisionTable
from liver_slurm.base.errors import BadInput

LEARNERS = Learners(logistic, (logistic,), (through(interactions, ridge),))
WAY = Way(learners=LEARNERS)


def two_actions(n: int, effect: Array | float, seed: int = 0, runs: int = 200) -> DecisionTable:
    """Logged by a fair coin; what is gained by action 1 is given for each decision."""
    random = np.random.default_rng(seed)
    actions = (random.random(n) < 0.5).astype(np.int64)
    outcome = actions * effect + random.normal(size=n)
    table = DecisionTable(
        covariates(n, seed), actions, outcome[:, None], np.ones((n, 1), dtype=bool), random.integers(runs, size=n)
    )
    return replace(table, logged=np.full((n, 2), 0.5))


def covariates(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + 1000).normal(size=(n, 3))


def logged(regime: str, seed: int, stage: int) -> tuple[DecisionTable, Domain]:
    random = np.random.default_rng(seed)
    table = log(2_000, REGIMES[regime], random).until(stage)
    return table, Domain(away(1_000, random).covariates(REGIMES[regime]), np.arange(1_000))


def test_a_rule_that_is_surely_better_is_advice() -> None:
    x = covariates(2_000)
    verdict = judge(two_actions(2_000, x[:, 0]), Way())
    assert verdict.opens
    assert verdict.gain is not None
    assert verdict.gain.value == pytest.approx(np.maximum(-x[:, 0], 0.0).mean(), abs=0.1)
    assert (verdict.rule(x) == (x[:, 0] > 0)).mean() > 0.95
    assert verdict.words.startswith("the learned rule is better than to take always (gain over it +0.")
    assert "2000 decisions of 200 runs" in verdict.words


def test_where_taking_is_right_there_is_no_difference_to_show() -> None:
    verdict = judge(two_actions(2_000, 1.0), Way())
    assert not verdict.opens
    assert verdict.words.startswith("take always: no difference that the data could show")


def test_where_nothing_matters_no_rule_is_surely_better() -> None:
    verdict = judge(two_actions(2_000, 0.0), Way())
    assert not verdict.opens
    assert verdict.words.startswith("take always: no rule is surely better (gain over it -")


def test_another_baseline_may_be_beaten() -> None:
    verdict = judge(two_actions(2_000, 1.0), Way(baseline=never, baseline_name="never take"))
    assert verdict.opens
    assert verdict.gain is not None
    assert verdict.gain.value == pytest.approx(1.0, abs=0.2)


def naive_gain(table: DecisionTable, way: Way, target: Domain | None = None) -> Estimated:
    """The gain of the learned rule on the data that it was learned from: too high."""
    folds, target_folds = by_group(table.groups, way.folds), gate._target_folds(target, way.folds)
    judged, _, _ = gate._contributions(table, way, target, folds, target_folds)
    rows = gate._rows(table, target)
    return judged.gain(chances(gate._learned(table, way, target), rows), chances(way.baseline, rows))


def test_a_rule_is_judged_by_runs_that_it_was_not_learned_from() -> None:
    """Whoever learns sees no row of the fold; a rule that knows rows by heart gains nothing elsewhere."""
    random = np.random.default_rng(3)
    table = two_actions(1_000, 0.0)
    seen: list[Array] = []

    def by_heart(x: Array, gains: Array) -> Rule:
        seen.append(x)
        known = {tuple(row): gain > 0.0 for row, gain in zip(x, gains, strict=True)}
        return lambda rows: np.array([float(known.get(tuple(row), random.random() < 0.5)) for row in rows])

    way = Way(learn=by_heart, by="efficient")
    assert naive_gain(table, way).at_least() > 0.0, "on its own data it seems to gain"
    seen.clear()
    verdict = judge(table, way)
    assert verdict.gain is not None
    assert verdict.gain.at_least() < 0.0
    rows = [{tuple(row) for row in x} for x in seen]
    assert [len(one) for one in rows[:5]] != [1_000] * 5
    assert len(rows[5]) == 1_000, "what is handed out is learned from all"
    groups = {tuple(row): group for row, group in zip(table.covariates, table.groups, strict=True)}
    for one in rows[:5]:
        inside = {groups[row] for row in one}
        outside = {groups[tuple(row)] for row in table.covariates if tuple(row) not in one}
        assert not inside & outside, "runs are whole"


def test_a_target_that_is_too_far_away_gets_no_verdict() -> None:
    table = two_actions(2_000, covariates(2_000)[:, 0])
    far = Domain(covariates(500) + 4.0, np.arange(500))
    verdict = judge(table, Way(), far)
    assert not verdict.opens
    assert "of equal weight" in verdict.words or "unlike everything in the source" in verdict.words


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (two_actions(80, 1.0), "decisions to take have a long-term outcome"),
        (two_actions(400, 1.0, runs=12), "12 runs, 20 are needed"),
    ],
)
def test_too_few_data_are_said_to_be_too_few(table: DecisionTable, said: str) -> None:
    verdict = judge(table, Way())
    assert said in too_few(table)
    assert not verdict.opens
    assert verdict.rule is always
    assert said in verdict.words


def test_many_covariates_need_many_outcomes() -> None:
    table = two_actions(400, 1.0)
    wide = replace(table, covariates=np.random.default_rng(0).normal(size=(400, 50)))
    assert too_few(wide) == "400 long-term outcomes for 50 covariates, 10 for each are needed"


def test_three_actions_are_refused() -> None:
    table = replace(two_actions(400, 1.0), logged=np.full((400, 3), 1 / 3))
    with pytest.raises(BadInput, match="the table has 3"):
        judge(table, Way())


@pytest.mark.long
def test_the_honest_gate_stays_shut_where_the_naive_one_opens() -> None:
    """T12: on the calm partition, with the outcome after four hours, no linear rule learned from 2,000 is better."""
    way = replace(WAY, by="efficient", learn=linear)
    honest = naive = 0
    for seed in range(40):
        table, target = logged("calm", seed, 2)
        gain = judge(table, way, target).gain
        assert gain is not None
        honest += gain.at_least() > 0.0  # the interval alone, without what else keeps the gate shut
        naive += naive_gain(table, way, target).at_least() > 0.0
    assert honest <= 5
    assert naive > 12


@pytest.mark.long
@pytest.mark.parametrize("regime", REGIMES)
def test_advice_is_never_worse_than_taking_always_and_better_where_that_is_bad(regime: str) -> None:
    """Acceptance: 20 logs of 2,000 decisions, the outcome after an hour, learned by what the regressions say."""
    runs = away(4_000, np.random.default_rng(99))
    greedy = goodput(always, REGIMES[regime], runs)
    reached, opened = [], 0
    for seed in range(20):
        verdict: Verdict = judge(*reordered(*logged(regime, seed, 1)))
        opened += verdict.opens
        reached.append(goodput(verdict.rule, REGIMES[regime], runs) if verdict.opens else greedy)
    assert np.mean(reached) >= greedy - 1e-9
    assert min(reached) >= greedy - 0.01
    if regime == "volatile":
        assert np.mean(reached) >= greedy + 0.08
        assert opened >= 10


def reordered(table: DecisionTable, target: Domain) -> tuple[DecisionTable, Way, Domain]:
    return table, WAY, target


def test_a_rule_is_judged_on_a_fold_that_it_has_not_seen() -> None:
    """Nor in the regressions and scores that the rule is learned from."""
    table = two_actions(1_000, 0.5)
    inside = by_group(table.groups, 5) == 2
    changed = replace(table, outcomes=np.where(inside[:, None], 100.0 - 7.0 * table.outcomes, table.outcomes))
    heard: list[list[Array]] = []
    for one in (table, changed):
        gains: list[Array] = []

        def learn(x: Array, gained: Array, told: list[Array] = gains) -> Rule:
            told.append(gained)
            return linear(x, gained)

        judge(one, Way(learn=learn))
        heard.append(gains)
    same = [np.array_equal(first, second) for first, second in zip(*heard, strict=True)]
    assert same == [False, False, True, False, False, False], "the last is the rule that is handed out"
