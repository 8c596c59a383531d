"""Partitions that are made up: lives follow the hazard, and a seed gives the same nodes again."""

from __future__ import annotations

import math
from statistics import fmean

import pytest

from liver_slurm.simulation.regimes import DAY, LOAD, REGIMES, SHORTEST, draw, job
from liver_slurm.simulation.setting import BEGIN


def test_nodes_are_taken_at_the_rate_that_is_said() -> None:
    """Each life uses up hazard until it ends: on average 1, whatever the hour and the load."""
    used = []
    for seed in range(20):
        drawn = draw(REGIMES["volatile"], seed, 2.0)
        for span in drawn.setting.trace.spans:
            if span.end < drawn.setting.trace.seconds:
                times = range(int(span.begin + SHORTEST), int(span.end), 10)
                used.append(sum(drawn.hazard(BEGIN + time) * 10.0 for time in times))
    assert len(used) > 1_000
    assert fmean(used) == pytest.approx(1.0, abs=0.1)


def test_the_hazard_is_highest_in_the_afternoon_and_with_load() -> None:
    drawn = draw(REGIMES["calm"], 0, 1.0)
    hours = [BEGIN + 3600.0 * hour for hour in range(24)]
    rest = [drawn.hazard(at) * 3000.0 / math.exp(LOAD * load) for at, load in zip(hours, drawn.loads, strict=False)]
    assert max(rest) == pytest.approx(math.exp(DAY), rel=0.05)
    assert min(rest) == pytest.approx(math.exp(-DAY), rel=0.05)


def test_a_seed_draws_the_same_and_another_one_does_not() -> None:
    first, again, other = (draw(REGIMES["free"], seed, 1.0).setting.trace for seed in (1, 1, 2))
    assert first.spans == again.spans != other.spans
    assert first.most == 1


def test_a_loss_costs_what_the_regime_says() -> None:
    assert REGIMES["free"].loss_s == REGIMES["free"].change_s
    assert REGIMES["volatile"].loss_s == 18.0 + 20.0 + 900.0
    assert job(2).elastic.layouts == ("tp1pp1dp2", "tp1pp1dp4", "tp1pp1dp6")
    assert REGIMES["free"].costs(2).step_s["tp1pp1dp6"] == pytest.approx(1 / 3)
