"""Figures of reconfigurations from moments, events and steps."""

from __future__ import annotations

import pytest
from event_samples import committed

from liver_slurm.bench.elastic import measured
from liver_slurm.bench.figures import Reconfigured, between, median_of, middle, ratio, usual
from liver_slurm.rundir.events import ReconfigurationStarted
from liver_slurm.rundir.metrics import StepMetrics


def step(number: int, end: float, generation: int, seconds: float = 1.0) -> StepMetrics:
    return StepMetrics(
        step=number,
        loss=1.0,
        grad_norm=1.0,
        lr=1.0,
        tokens=1,
        consumed_samples=number,
        generation=generation,
        layout="tp1pp1dp1",
        start=end - seconds,
        end=end,
    )


def test_a_usual_step_is_the_median_between_ends() -> None:
    assert usual([10.0, 11.0, 12.0, 20.0]) == 1.0


def test_parts_add_up_to_the_whole() -> None:
    parts = between({"last_step": 10.0, "save_s": 10.5, "end_s": 12.0, "first_step_s": 15.0})
    assert parts == {"save_s": 0.5, "end_s": 1.5, "first_step_s": 3.0}
    assert sum(parts.values()) == 5.0


def test_the_step_that_is_trained_anyway_is_not_lost() -> None:
    assert Reconfigured(interval_s=3.0, usual_s=1.0, parts={}).lost_s == 2.0


def test_a_step_that_happened_to_be_short_does_not_hide_a_pause() -> None:
    assert Reconfigured(interval_s=0.9, usual_s=1.0, parts={}, stood_s=0.2, before_s=0.1).lost_s == pytest.approx(0.3)


def test_medians_are_taken_of_each_figure_by_itself() -> None:
    results = [Reconfigured(1.0 + lost, 1.0, {"a": lost, **({"b": 7.0} if lost == 3 else {})}) for lost in (1, 5, 3)]
    document = middle(results)
    assert document["lost_s"] == 3.0
    assert document["parts"] == {"a": 3, "b": 7.0}
    assert document["each_s"] == [1.0, 5.0, 3.0]


def test_chance_does_not_add_to_what_several_lost() -> None:
    results = [Reconfigured(2.0 + by, 2.0, {}, stood_s=0.1, before_s=0.01) for by in (-0.5, 0.4, 0.0)]
    assert middle(results)["lost_s"] == pytest.approx(0.11)
    assert [one.lost_s for one in results] == pytest.approx([0.11, 0.41, 0.11])


@pytest.mark.parametrize(
    ("baseline", "ours", "expected"), [(10.0, 0.5, 20.0), (None, 1.0, None), (1.0, None, None), (1.0, 0.0, None)]
)
def test_a_ratio_needs_both(baseline: float | None, ours: float | None, expected: float | None) -> None:
    assert ratio(baseline, ours) == expected


def test_cases_without_a_figure_are_left_out_of_the_median() -> None:
    assert median_of([{"r": 1.0}, {"r": None}, {}, {"r": 5.0}, {"r": 3.0}], "r") == 3.0
    assert median_of([{"r": None}], "r") is None


def test_a_run_is_measured_from_its_events_and_steps() -> None:
    # World 0 trains a step a second until 4; the change takes 1.5 s more than that step; world 1 takes 2 s a step.
    steps = [step(number, float(number), 0) for number in range(1, 5)]
    steps += [step(number, 7.5 + 2.0 * (number - 5), 1, seconds=2.0) for number in range(5, 9)]
    events = [
        ReconfigurationStarted(generation=1, time=3.5, to="tp1pp1dp3"),
        committed(generation=1, time=7.0, cutover_step=4, pause_s=1.2, hook_s=0.25, stream_s=1.0),
    ]
    (result,) = measured(events, steps)
    assert (result.interval_s, result.usual_s) == (3.5, 2.0)
    assert result.lost_s == pytest.approx(1.5 + 0.25)
    assert result.parts["stream_s"] == 1.0
    assert result.parts["first_step_s"] == 2.0


def test_steps_beside_a_preparation_are_no_usual_ones() -> None:
    steps = [step(number, float(number), 0) for number in range(1, 5)]
    steps += [step(number, 4.0 + 2.0 * (number - 4), 1) for number in range(5, 9)]
    steps += [step(9, 100.0, 1), step(10, 200.0, 2), step(11, 201.0, 2), step(12, 202.0, 2)]
    events = [
        ReconfigurationStarted(generation=1, time=3.5, to="tp1pp1dp3"),
        committed(generation=1, time=5.0, cutover_step=4, pause_s=0.0),
        ReconfigurationStarted(generation=2, time=12.5, to="tp1pp1dp3"),
        committed(generation=2, time=150.0, cutover_step=9, pause_s=0.0),
    ]
    first, second = measured(events, steps)
    assert first.usual_s == 2.0
    assert second.interval_s == 100.0
