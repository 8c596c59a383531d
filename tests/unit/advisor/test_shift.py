"""Covariate shift: the ratio of densities from a classifier."""

from __future__ import annotations

import numpy as np
import pytest

from liver_slurm.advisor.learners import logistic
from liver_slurm.advisor.shift import density_ratio


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
