"""When a checkpoint is due by the clock, or again after one that failed."""

from __future__ import annotations

import math

import pytest

from liver_slurm.worker.checkpoint_schedule import (
    FIRST_RETRY,
    LAST_RETRY,
    LONGEST,
    SHORTEST,
    WORKER_MTBF,
    Schedule,
    interval,
)


def test_the_interval_is_youngs_within_its_bounds() -> None:
    assert interval(1.0, 10.0, 512) == pytest.approx(math.sqrt(2 * 1.0 * WORKER_MTBF / 512))
    assert SHORTEST < interval(1.0, 10.0, 512) < LONGEST
    assert interval(0.001, 1.0, 16_384) == SHORTEST
    assert interval(10.0, 1.0, 2) == LONGEST
    assert interval(0.0, 0.0, 8) == SHORTEST, "before it is known what one costs"


def test_writing_takes_a_tenth_of_the_time_at_most() -> None:
    assert interval(0.001, 900.0, 16_384) == 9000.0


def test_the_first_one_comes_soon_and_the_next_by_what_it_cost() -> None:
    schedule = Schedule(automatic=True, workers=512, saved=100.0)
    assert not schedule.due(100.0 + SHORTEST - 1)
    assert schedule.due(100.0 + SHORTEST)
    schedule.begun(400.0)
    schedule.ended(410.0, "", 1.0, 10.0)
    wait = interval(1.0, 10.0, 512)
    assert not schedule.due(400.0 + wait - 1)
    assert schedule.due(400.0 + wait)


def test_with_a_number_of_steps_the_clock_asks_for_none() -> None:
    assert not Schedule(automatic=False, workers=2, saved=0.0).due(1e9)


@pytest.mark.parametrize("automatic", [True, False])
def test_one_that_failed_is_tried_again_later_and_later(automatic: bool) -> None:
    schedule = Schedule(automatic, workers=2, saved=0.0)
    now, waits = 0.0, []
    for _ in range(6):
        schedule.begun(now)
        schedule.ended(now, "no space", 1.0, 1.0)
        waits.append(next(wait for wait in range(10_000) if schedule.due(now + wait)))
        now += waits[-1]
    assert waits == [FIRST_RETRY, 120, 240, 480, LAST_RETRY, LAST_RETRY]
    schedule.begun(now)
    schedule.ended(now, "", 1.0, 1.0)
    assert not schedule.due(now + LAST_RETRY) or automatic
    assert schedule.failures == 0
