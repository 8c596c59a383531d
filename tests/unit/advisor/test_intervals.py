"""Intervals: errors by run, and how far they reach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from liver_slurm.advisor import contributions
from liver_slurm.advisor.intervals import Estimated, bootstrap, grouped
from liver_slurm.advisor.learners import linear_learners
from liver_slurm.advisor.stages import fit_nuisances
from liver_slurm.advisor.synthetic import dropping_out


def test_decisions_that_are_copies_add_nothing() -> None:
    """T13: each decision five times in its run."""
    one = dropping_out(400, np.random.default_rng(0)).table
    five = one.rows(np.repeat(np.arange(400), 5))
    found, copied = (
        contributions.here(table, fit_nuisances(table, linear_learners())).effect() for table in (one, five)
    )
    assert copied.value == pytest.approx(found.value, abs=1e-8)
    assert copied.error == pytest.approx(found.error, rel=1e-8)
    assert copied.groups == found.groups == 400

    apart = replace(five, groups=np.arange(2000))
    taken_apart = contributions.here(apart, fit_nuisances(apart, linear_learners())).effect()
    assert taken_apart.error == pytest.approx(found.error / np.sqrt(5), rel=1e-6), "what it would be without groups"


def test_with_few_runs_the_interval_is_students() -> None:
    few, many = Estimated(1.0, 2.0, 12), Estimated(1.0, 2.0, 40)
    assert few.few
    assert not many.few
    assert few.interval() == pytest.approx((1.0 - 2.2010 * 2.0, 1.0 + 2.2010 * 2.0), abs=1e-3)
    assert many.interval() == pytest.approx((1.0 - 1.9600 * 2.0, 1.0 + 1.9600 * 2.0), abs=1e-3)
    assert few.at_least() == pytest.approx(1.0 - 1.7959 * 2.0, abs=1e-3)
    assert many.at_least() == pytest.approx(1.0 - 1.6449 * 2.0, abs=1e-3)


def test_of_one_run_nothing_is_sure() -> None:
    assert Estimated(1.0, 2.0, 1).interval() == (-np.inf, np.inf)


def test_the_influence_of_a_run_is_summed_before_it_is_squared() -> None:
    found = grouped(0.0, np.array([1.0, -1.0, 2.0, 2.0]), np.array(["a", "a", "b", "b"]), 4.0)
    assert found.error == pytest.approx(1.0)
    assert found.groups == 2


def test_a_bootstrap_draws_whole_runs() -> None:
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(50), 4)
    values = np.repeat(random.normal(size=50), 4)
    drawn = bootstrap(groups, lambda rows: float(values[rows].mean()), draws=400)
    assert drawn.std() == pytest.approx(grouped(0.0, values - values.mean(), groups, 200.0).error, rel=0.15)

    sizes = []
    bootstrap(np.array(["b", "a", "b"]), lambda rows: float(sizes.append(sorted(rows)) or 0.0), draws=20)
    assert {tuple(rows) for rows in sizes} == {(0, 1, 2), (1, 1), (0, 0, 2, 2)}
