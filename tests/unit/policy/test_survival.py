"""How long standbys may be expected to stay, and partitions that rest."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.policy.survival import (
    LONGEST_REST,
    Life,
    failed_in_a_row,
    failing,
    hazards,
    on_trial,
    resting,
    until_first_leaves,
)


def life(began: float, ended: float | None, taken: bool = True, partition: str = "p") -> Life:
    return Life(f"{began}", partition, began, ended, taken)


def test_the_prior_holds_at_every_age() -> None:
    rates = hazards([], 900.0, 0.0)
    for age in (0.0, 59.0, 700.0, 1e6):
        assert until_first_leaves(rates, [age]) == pytest.approx(900.0)
    assert until_first_leaves(rates, [0.0, 100.0, 1000.0]) == pytest.approx(300.0)
    assert until_first_leaves(rates, []) == math.inf


def test_many_observations_outweigh_the_prior() -> None:
    died_young = [life(0.0, 30.0)] * 200
    assert until_first_leaves(hazards(died_young, 900.0, 0.0), [0.0]) < 60
    stay = [life(0.0, None)] * 50
    assert until_first_leaves(hazards(stay, 900.0, 10_000.0), [0.0]) > 10_000
    released = [life(0.0, 30.0, taken=False)] * 200
    assert until_first_leaves(hazards(released, 900.0, 0.0), [0.0]) > 900, "those that we ended did not die"
    mixed = [life(0.0, 30.0)] * 50 + [life(0.0, 8000.0)] * 20
    rates = hazards(mixed, 900.0, 0.0)
    assert until_first_leaves(rates, [400.0]) > 1.5 * until_first_leaves(rates, [0.0]), "who has stayed tends to stay"


@given(st.lists(st.floats(0, 20_000), max_size=20), st.lists(st.floats(0, 20_000), min_size=1, max_size=4))
def test_the_integral_is_that_of_the_survival(lengths: list[float], ages: list[float]) -> None:
    rates = hazards([life(0.0, length) for length in lengths], 900.0, 0.0)
    found = until_first_leaves(rates, ages)
    assert 0 < found <= min(until_first_leaves(rates, [age]) for age in ages) * (1 + 1e-9)
    assert 1 / (len(ages) * max(rates)) <= found * (1 + 1e-9)
    assert found <= 1 / (len(ages) * min(rates)) * (1 + 1e-9)


def test_a_partition_rests_after_three_short_spans() -> None:
    short = [life(start, start + 20.0) for start in (0.0, 100.0, 200.0, 300.0)]
    assert resting(short[:2], 130.0, 60.0, 30.0) == {}
    assert resting(short[:3], 230.0, 60.0, 30.0) == {"p": (250.0, 3)}
    assert resting(short[:3], 251.0, 60.0, 30.0) == {}
    assert resting(short, 330.0, 60.0, 30.0) == {"p": (380.0, 4)}
    many = [life(start * 100.0, start * 100.0 + 20.0) for start in range(100)]
    assert resting(many, 9930.0, 60.0, 30.0) == {"p": (9920.0 + LONGEST_REST, 100)}


@pytest.mark.parametrize(
    "good",
    [life(210.0, 290.0), life(150.0, None), life(210.0, 230.0, partition="q"), life(210.0, 230.0, taken=False)],
    ids=["a long life", "one that stays", "elsewhere", "ended by us"],
)
def test_what_does_not_count(good: Life) -> None:
    short = [life(start, start + 20.0) for start in (0.0, 100.0)]
    assert resting([*short, good], 295.0, 60.0, 300.0) == {}


def test_some_of_many_that_run_are_always_taken() -> None:
    """Three of forty within a minute is a mean life of 13 minutes; three of four is not half a minute."""
    short = [life(0.0, end) for end in (10.0, 25.0, 40.0)]
    assert resting([*short, *[life(0.0, None)] * 37], 50.0, 60.0, 30.0) == {}
    assert resting([*short, life(0.0, None)], 50.0, 60.0, 30.0) == {"p": (70.0, 3)}
    all_taken = [life(start, start + 20.0) for start in (0.0, 100.0, 200.0) for _ in range(40)]
    assert resting(all_taken, 230.0, 60.0, 30.0) == {"p": (250.0, 3)}


def test_a_crowd_counts_once() -> None:
    assert resting([life(0.0, 20.0 + index) for index in range(4)], 30.0, 60.0, 30.0) == {}


def failed(at: float, partition: str = "p") -> Life:
    return Life(f"{at}", partition, at, at, failed=True)


ROW = [failed(1.0), failed(11.0), failed(21.0)]


def test_a_partition_where_jobs_fail_as_they_start_is_tried_ever_less_often() -> None:
    assert failing(ROW[:2], 12.0, 30.0) == {}
    assert failing(ROW, 24.0, 30.0) == {"p": (51.0, 3)}
    assert failing(ROW, 51.0, 30.0) == {}, "one may be tried"
    assert failing([*ROW, failed(60.0)], 61.0, 30.0) == {"p": (120.0, 4)}
    many = [failed(10.0 * at) for at in range(40)]
    assert failing(many, 400.0, 30.0) == {"p": (390.0 + LONGEST_REST, 40)}


def test_those_that_fail_together_fail_once() -> None:
    crowd = [failed(at + 0.05 * number) for at in (1.0, 11.0) for number in range(64)]
    assert failed_in_a_row(crowd, "p") == 2
    assert failing(crowd, 18.0, 30.0) == {}
    assert on_trial(crowd) == frozenset()


def test_a_partition_is_on_trial_until_a_worker_comes() -> None:
    assert on_trial([*ROW, failed(30.0, "q")]) == {"p"}
    assert on_trial([*ROW, life(60.0, None)]) == frozenset()


def test_one_that_starts_makes_a_partition_good_again() -> None:
    assert failing([*ROW, life(22.0, None)], 23.0, 30.0) == {}
    assert failing([life(0.0, None), *ROW], 23.0, 30.0) == {"p": (51.0, 3)}, "one that has run all along does not"
    assert failing([*ROW, life(22.0, None, partition="q")], 23.0, 30.0) == {"p": (51.0, 3)}


def test_failed_starts_say_nothing_of_how_long_others_stay() -> None:
    row = [failed(float(at)) for at in range(200)]
    assert hazards(row, 900.0, 300.0) == hazards([], 900.0, 300.0)
    assert resting(row, 300.0, 60.0, 30.0) == {}


def test_jobs_of_one_order_that_fail_one_after_another_count_once() -> None:
    one = [replace(failed(10.0 * number), ordered=1.0) for number in range(1, 9)]
    assert failed_in_a_row(one, "p") == 1
    two = [*one, replace(failed(85.0), ordered=2.0), replace(failed(86.0), ordered=1.0)]
    assert failed_in_a_row(two, "p") == 2
