"""Covariate shift: the ratio of densities from a classifier."""

from __future__ import annotations

import numpy as np
import pytest

from liver_slurm.advisor.contributions import there
from liver_slurm.advisor.learners import linear_learners, logistic
from liver_slurm.advisor.rules import chances
from liver_slurm.advisor.shift import Ratio, density_ratio
from liver_slurm.advisor.stages import fit_nuisances
from liver_slurm.advisor.synthetic_shift import LINEAR, fixed_policy, shifted, true_reward


@pytest.mark.parametrize(("here", "there"), [(3_000, 3_000), (6_000, 1_500)])
def test_the_ratio_is_that_of_the_densities_whatever_the_domains_sizes(here: int, there: int) -> None:
    random = np.random.default_rng(0)
    source, target = random.normal(size=(here, 2)), random.normal(size=(there, 2)) + np.array([0.5, 0.0])
    found = density_ratio(source, target, logistic).source * here / there
    truth = np.exp(0.5 * source[:, 0] - 0.125)
    assert found.mean() == pytest.approx(1.0, abs=0.05)
    assert np.corrcoef(found, truth)[0, 1] > 0.99
    assert np.average(source, axis=0, weights=found) == pytest.approx([0.5, 0.0], abs=0.08)


def test_what_the_source_never_saw_is_counted() -> None:
    random = np.random.default_rng(1)
    source = random.normal(size=(1_000, 1))
    near, far = random.normal(size=(400, 1)), random.normal(size=(400, 1)) + 6.0
    assert density_ratio(source, far, logistic).outside.mean() > 0.5
    assert density_ratio(source, near, logistic).outside.mean() == 0.0
    assert density_ratio(source, far, logistic).source.max() <= 49.0


def test_a_row_is_judged_by_the_other_folds() -> None:
    random = np.random.default_rng(2)
    source, target = random.normal(size=(400, 3)), random.normal(size=(400, 3))
    folds = np.arange(400) % 2
    moved = target + np.where(folds == 1, 1.0, 0.0)[:, None]
    before = density_ratio(source, target, logistic, folds, folds).source
    after = density_ratio(source, moved, logistic, folds, folds).source
    assert (before[folds == 1] == after[folds == 1]).all()
    assert not (before[folds == 0] == after[folds == 0]).any()


def test_a_few_large_ratios_are_cut_and_the_sum_stays() -> None:
    raw = Ratio(np.array([1.0] * 98 + [50.0, 200.0]), np.zeros(4, dtype=bool))
    found = raw.capped(10.0)
    limit = 10.0 * raw.source.mean()
    assert found.source.sum() == pytest.approx(raw.source.sum())
    assert found.source[98] == found.source[99], "both were cut"
    assert found.cut == pytest.approx(1.0 - (98.0 + 2 * limit) / 348.0)
    even = Ratio(np.ones(10), np.zeros(4, dtype=bool))
    assert (even.capped().cut, even.capped().source.tolist()) == (0.0, even.source.tolist())


def test_what_is_cut_costs_little_truth_and_much_noise() -> None:
    """The efficient estimate with right models, far elsewhere: its spread falls, and no bias comes of it."""
    truth = true_reward(fixed_policy, LINEAR, 1.0)
    off: dict[str, list[float]] = {"raw": [], "capped": []}
    for seed in range(60):
        one = shifted(1_000, 1_000, np.random.default_rng(seed), 1.0, LINEAR)
        fitted = fit_nuisances(one.table, linear_learners(), target=one.target)
        ratio = density_ratio(one.table.covariates, one.target, logistic)
        policy = chances(fixed_policy, np.vstack([one.table.covariates, one.target]))
        for name, each in (("raw", ratio), ("capped", ratio.capped())):
            terms = there(one.table, fitted, each.source, np.arange(1_000))
            off[name].append(terms.value(policy).value - truth)
    assert abs(np.mean(off["capped"])) < 3.0 * np.std(off["capped"]) / np.sqrt(60) + 0.02
    assert np.std(off["capped"]) < 0.9 * np.std(off["raw"])
