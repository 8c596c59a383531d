"""Contributions: values of policies are linear in the policy, in one domain and in two."""

from __future__ import annotations

import numpy as np
import pytest
from misspecified import CASES, blurred, learners

from liver_slurm.advisor import contributions
from liver_slurm.advisor.arrays import Array
from liver_slurm.advisor.contributions import Contributions
from liver_slurm.advisor.folds import by_group
from liver_slurm.advisor.learners import Learners, linear_learners, logistic
from liver_slurm.advisor.shift import density_ratio
from liver_slurm.advisor.stages import fit_nuisances
from liver_slurm.advisor.synthetic_shift import LINEAR, TwoDomains, fixed_policy, shifted, true_reward

N = 1_000


def policy(chance: Array) -> Array:
    return np.column_stack([1.0 - chance, chance])


def fixed(one: TwoDomains) -> Array:
    return policy(fixed_policy(np.vstack([one.table.covariates, one.target])))


def transported(one: TwoDomains, how: Learners, ratio: Array | None = None) -> Contributions:
    fitted = fit_nuisances(one.table, how, target=one.target)
    found = density_ratio(one.table.covariates, one.target, how.propensity).source if ratio is None else ratio
    return contributions.there(one.table, fitted, found, np.arange(len(one.target)))


def test_the_value_is_linear_in_the_policy() -> None:
    """T11."""
    random = np.random.default_rng(1)
    one = shifted(N, N, random, 0.7, LINEAR)
    found = transported(one, linear_learners())
    chance = random.random(2 * N)
    never = policy(np.zeros(2 * N))
    gamma = found.gamma[:, 1] - found.gamma[:, 0]
    gain = found.value(policy(chance)).value - found.value(never).value
    assert gain == pytest.approx((chance * gamma).sum() / N, abs=1e-10)
    assert found.gain(policy(chance), never).value == pytest.approx(gain, abs=1e-10)


def test_a_target_that_is_the_source_gives_the_mean_of_the_source() -> None:
    """T7: with all ratios 1, the average of the first paper."""
    one = shifted(N, N, np.random.default_rng(2), 0.0, LINEAR)
    fitted = fit_nuisances(one.table, linear_learners(), target=one.table.covariates)
    same = contributions.there(one.table, fitted, np.ones(N), np.arange(N))
    at_home = contributions.here(one.table, fitted)
    assert [mean.value for mean in same.means()] == pytest.approx([mean.value for mean in at_home.means()], abs=1e-10)


def test_the_value_over_both_domains_is_that_of_each_weighed_by_its_rows() -> None:
    one = shifted(4_000, 2_000, np.random.default_rng(3), 0.5, LINEAR)
    fitted = fit_nuisances(one.table, linear_learners(), target=one.target)
    ratio = density_ratio(one.table.covariates, one.target, logistic).source
    groups = np.arange(2_000)
    whole = contributions.both(one.table, fitted, ratio, groups).value(fixed(one)).value
    source = contributions.here(one.table, fitted).value(fixed(one)[:4_000]).value
    target = contributions.there(one.table, fitted, ratio, groups).value(fixed(one)).value
    assert whole == pytest.approx((2 * source + target) / 3, abs=1e-10)


def test_groups_of_two_domains_are_never_one() -> None:
    one = shifted(10, 10, np.random.default_rng(4), 0.0, LINEAR)
    fitted = fit_nuisances(one.table, linear_learners(), target=one.target)
    found = contributions.there(one.table, fitted, np.ones(10), np.zeros(10, dtype=np.int64))
    assert len(np.unique(found.groups)) == 11


def test_a_policy_that_never_differs_gains_nothing_for_sure() -> None:
    one = shifted(N, N, np.random.default_rng(5), 0.7, LINEAR)
    found = transported(one, linear_learners()).gain(fixed(one), fixed(one))
    assert (found.value, found.error) == (0.0, 0.0)


def test_normalised_weights_bring_the_same_value_where_they_sum_to_the_targets_rows() -> None:
    one = shifted(N, N, np.random.default_rng(6), 0.7, LINEAR)
    found = transported(one, linear_learners())
    off = (fixed(one) * found.entry).sum() / N
    assert off != pytest.approx(1.0, abs=0.001)
    scaled = transported(one, linear_learners(), density_ratio(one.table.covariates, one.target, logistic).source / off)
    assert scaled.normalised(fixed(one)) == pytest.approx(scaled.value(fixed(one)).value, abs=1e-10)
    assert found.normalised(fixed(one)) == pytest.approx(scaled.normalised(fixed(one)), abs=1e-10)


@pytest.mark.slow
def test_normalised_weights_are_steadier_in_small_samples() -> None:
    truth = true_reward(fixed_policy, LINEAR, 0.7)
    plain, normalised = [], []
    for seed in range(100):
        one = shifted(250, 250, np.random.default_rng(seed), 0.7, LINEAR)
        folds, target_folds = by_group(np.arange(250), 5), by_group(np.arange(250), 5, seed=1)
        fitted = fit_nuisances(one.table, linear_learners(), folds, target=one.target, target_folds=target_folds)
        ratio = density_ratio(one.table.covariates, one.target, logistic, folds, target_folds).source
        found = contributions.there(one.table, fitted, ratio, np.arange(250))
        plain.append(found.value(fixed(one)).value - truth)
        normalised.append(found.normalised(fixed(one)) - truth)
    assert np.std(normalised) < np.std(plain)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_reward_elsewhere_needs_one_of_two_right_models(case: str) -> None:
    """T6, on 100 pairs of domains, and the acceptance's margins."""
    how = learners(4, **CASES[case])
    truth = true_reward(fixed_policy, LINEAR, 0.7)
    efficient, direct, weighting, covered = [], [], [], []
    for seed in range(100):
        one = shifted(N, N, np.random.default_rng(seed), 0.7, LINEAR)
        fitted = fit_nuisances(one.table, how, target=one.target)
        ratio = density_ratio(one.table.covariates, one.target, how.propensity).source
        found = contributions.there(one.table, fitted, ratio, np.arange(N))
        estimated = found.value(fixed(one))
        low, high = estimated.interval()
        covered.append(low <= truth <= high)
        efficient.append(estimated.value - truth)
        direct.append(found.without_residuals().value(fixed(one)).value - truth)
        alone = contributions.weighting_only(one.table, fitted)
        weighting.append(contributions.there(one.table, alone, ratio, np.arange(N)).value(fixed(one)).value - truth)
    if case != "both wrong":
        assert abs(np.mean(efficient)) < 0.04
        assert 0.90 <= np.mean(covered) <= 0.99
    if case == "outcome wrong":
        assert abs(np.mean(direct)) > 0.25
    if case == "weights wrong":
        assert abs(np.mean(weighting)) > 0.4


def test_blurred_covariates_are_still_those_of_the_row() -> None:
    """The wrong models of these tests depend on nothing but the row, so that folds and domains see it alike."""
    x = np.random.default_rng(6).normal(size=(50, 4))
    seen: list[Array] = []

    def spy(features: Array, values: Array, weights: Array) -> object:
        seen.append(features)
        return lambda rows: rows[:, 0]

    fit = blurred(4, spy)  # type: ignore[arg-type]
    fit(x, x[:, 0], x[:, 0])
    fit(x[:10], x[:10, 0], x[:10, 0])
    assert (seen[0][:10] == seen[1]).all()
