"""Means and intervals over several seeds."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation_lab import COSTS, elastic_job, setting, trace

from liver_slurm.simulation.cases import Case
from liver_slurm.simulation.seeds import FIGURES, interval, mean_case, simulate, student
from liver_slurm.simulation.setting import QueueWait

CASE = Case("greedy", "pause", 0.9, 0.8, 100.0, 3, 5.0, 0.0)


def test_the_mean_of_seeds_has_intervals() -> None:
    """Of 1, 2 and 3 the deviation is 1: t(0.975; 2) = 4.303, so the interval is 2 ± 4.303 / √3."""
    found = mean_case([replace(CASE, changes=changes) for changes in (1, 2, 3)])
    assert (found.changes, found.seeds) == (2.0, 3)
    assert found.intervals["changes"] == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5))
    assert found.intervals["ettr"] == pytest.approx((0.9, 0.9))
    assert list(found.intervals) == list(FIGURES)


def test_one_seed_stays_as_it_is() -> None:
    assert mean_case([CASE]) is CASE
    assert CASE.intervals == {}


def test_a_run_that_ended_is_told() -> None:
    assert mean_case([CASE, replace(CASE, end="too few"), replace(CASE, end="too few")]).end == "too few"


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40))
def test_an_interval_has_the_mean_in_its_middle(values: list[float]) -> None:
    low, high = interval(values)
    assert low <= high
    assert (low + high) / 2 == pytest.approx(statistics.fmean(values), abs=1e-6)


def test_student_falls_to_the_normal_distribution() -> None:
    found = [student(freedom) for freedom in range(1, 200)]
    assert found == sorted(found, reverse=True)
    assert student(21) == pytest.approx(2.0796, abs=1e-4)
    assert student(100) == pytest.approx(1.98397, abs=1e-5)


def test_cases_of_several_settings() -> None:
    made = trace(1000.0, ("a", 100.0, 600.0))
    told: list[int] = []
    settings = [setting(made, queue_wait=QueueWait("uniform", 0.0, 60.0), seed=seed) for seed in range(3)]
    cases = simulate(elastic_job(), settings, COSTS, ("greedy",), ("pause",), tell=told.append)
    assert told == [1, 2, 3]
    assert [case.seeds for case in cases] == [3] * 5
    ours, *_, bound = cases
    low, high = ours.intervals["tokens"]
    assert low < ours.tokens < high, "waits in the queue are drawn"
    assert bound.intervals["tokens"] == pytest.approx((bound.tokens, bound.tokens)), "the trace is the same"
    assert bound.of_bound == 1.0
    assert 0.5 < ours.of_bound < 1.0
