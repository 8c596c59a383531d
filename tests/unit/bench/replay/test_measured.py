"""Figures of both runs within the time of a trace."""

from __future__ import annotations

import pytest

from liver_slurm.bench.replay.measured import (
    Figures,
    WorldSteps,
    of_restarts,
    relative,
    restart_costs,
    sizes_of_restarts,
)
from liver_slurm.bench.replay.restart_orders import Step


def world(size: int, first: int, begun: float, *lengths: float, save_s: float = 0.0) -> WorldSteps:
    """Steps one after another, a save behind the last."""
    steps, now = [], begun
    for number, length in enumerate(lengths, start=first):
        steps.append(Step(number, now, now + length))
        now += length
    last = steps[-1]
    return WorldSteps(size, [*steps[:-1], Step(last.step, last.begun, last.end, save_s)])


def test_a_first_step_counts_with_what_is_usual() -> None:
    worlds = [world(2, 1, 0.0, 5.0, 1.0, 1.0, 1.0, 1.0)]
    found = of_restarts(worlds, begin=0.0, end=10.0, offered=20.0)
    assert (found.ettr, found.capacity_goodput, found.steps) == (0.5, 0.5, 5)


def test_time_between_worlds_does_not_count_nor_does_what_lies_outside() -> None:
    worlds = [world(2, 1, -2.0, 1.0, 1.0, 1.0, 1.0, save_s=1.0), world(4, 5, 6.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)]
    found = of_restarts(worlds, begin=0.0, end=10.0, offered=40.0)
    assert (found.ettr, found.capacity_goodput) == (0.6, (2 * 2 + 4 * 4) / 40)
    assert (found.changes, found.paused_s) == (1, 4.0)
    assert sizes_of_restarts(worlds, 0.0) == [(-2.0, 2), (2.0, 0), (6.0, 4)]


def test_steps_that_are_trained_again_count_once() -> None:
    worlds = [world(2, 1, 0.0, 1.0, 1.0, 1.0, 1.0), world(2, 3, 6.0, 1.0, 1.0, 1.0, 1.0)]
    assert of_restarts(worlds, begin=0.0, end=10.0, offered=20.0).ettr == pytest.approx(0.6)


def test_a_checkpoint_between_two_steps_is_no_part_of_them() -> None:
    steps = [*world(2, 1, 0.0, 1.0, 1.0, 1.0, 1.0, save_s=2.0).steps, *world(2, 5, 6.0, 1.0, 1.0, 1.0, 1.0).steps]
    found = of_restarts([WorldSteps(2, steps)], begin=0.0, end=10.0, offered=20.0)
    assert found.ettr == pytest.approx(0.8)
    assert restart_costs([WorldSteps(2, steps)]) == {"restart_s": [], "save_s": [2.0]}


def test_a_restart_is_from_the_checkpoint_to_the_first_step() -> None:
    worlds = [world(2, 1, 0.0, 1.0, 1.0, 1.0, 1.0, save_s=0.5), world(4, 5, 9.0, 2.0, 1.0, 1.0, 1.0, 1.0)]
    assert restart_costs(worlds) == {"restart_s": [11.0 - 4.5 - 1.0], "save_s": [0.5]}


def test_a_world_from_an_older_checkpoint_teaches_nothing() -> None:
    worlds = [world(2, 1, 0.0, 1.0, 1.0, 1.0, 1.0), world(4, 3, 9.0, 2.0, 1.0, 1.0, 1.0, 1.0)]
    assert restart_costs(worlds)["restart_s"] == []


def test_a_restart_that_was_broken_off_is_not_measured() -> None:
    worlds = [world(2, 1, 0.0, 1.0, 1.0, 1.0, 1.0, save_s=0.5), WorldSteps(4, []), world(2, 5, 19.0, 1.0, 1.0, 1.0)]
    assert restart_costs(worlds) == {"restart_s": [], "save_s": [0.5]}


def test_a_difference_is_a_share_of_the_real_figure() -> None:
    real, simulated = Figures(0.5, 0.4, 1, 1.0, 1), Figures(0.52, 0.38, 1, 1.0, 1)
    assert relative(real, simulated) == {"ettr": pytest.approx(0.04), "capacity_goodput": pytest.approx(-0.05)}
