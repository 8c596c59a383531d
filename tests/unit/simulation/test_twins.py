"""Twins: alike until the decision, and by what follows as far as it is not its doing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulation_lab import COSTS, elastic_job, setting, trace

from liver_slurm.policy.offer import WINDOWS
from liver_slurm.simulation.twins import twins

HOURS = 4 * 3600.0
# No change is worth 300 s of standing still to a node that is there for two minutes.
PRICES = replace(COSTS, exposed_pause_s=100.0)


def test_what_taking_does_is_the_difference() -> None:
    """One node for an hour, later one for two minutes: with it a step takes half the time."""
    made = setting(trace(HOURS, ("n1", 300.0, 3900.0), ("n2", 5000.0, 5200.0)), 60.0, seed=3)
    config = elastic_job(explore=0.5, commit=3600.0, max_jobs=1)
    found = twins(config, made, PRICES, "pause", 10)
    assert [one.number for one in found] == [0, 1]
    long, short = found
    assert set(long.gained) == {"take", "leave"}
    # Two changes stop training for 200 s in all, and for an hour less a minute a second trains two.
    assert long.effect(WINDOWS[-1]) == pytest.approx(3600.0 - 60.0 - 200.0, abs=200.0)
    assert short.effect(WINDOWS[-1]) == pytest.approx(-200.0, abs=60.0), "it goes as soon as it trains"
    assert long.gained["leave"][:2] == (0.0, 0.0)
    assert long.features["workers"] == 2.0


def test_the_same_lots_give_the_same_twins() -> None:
    made = setting(trace(HOURS, ("n1", 300.0, 3900.0)), 60.0)
    config = elastic_job(explore=0.5, commit=900.0, max_jobs=1)
    first, again = (twins(config, made, COSTS, "pause", 2) for _ in range(2))
    assert first == again
    assert first


def test_offers_whose_windows_go_beyond_the_trace_are_left_out() -> None:
    made = setting(trace(2.0 * 3600.0, ("n1", 300.0, 3900.0)), 60.0)
    assert twins(elastic_job(explore=0.5), made, COSTS, "pause", 10) == []
