"""How fast a run trains now: the last steps of its live world, and nothing before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from liver_slurm.base.flops import Rates
from liver_slurm.observability.throughput import Pace, pace, recent_rates
from liver_slurm.rundir.metrics import MetricsWriter, StepMetrics, read_metrics


def step(number: int, generation: int = 0, **rates: Any) -> StepMetrics:
    """A step of 100 tokens that takes a second, and begins two seconds after the one before."""
    return StepMetrics(
        step=number, loss=1.0, grad_norm=0.5, lr=1e-3, tokens=100, consumed_samples=16 * number, generation=generation,
        layout="tp1pp1dp2", start=2.0 * number, end=2.0 * number + 1.0, **rates,
    )  # fmt: skip


FULL = {"tokens_per_s": 100.0, "tflops": 40.0, "mfu": 0.25}


def test_waiting_between_steps_counts() -> None:
    found = recent_rates([step(number, **FULL) for number in range(5)])
    assert found.tokens_per_s == pytest.approx(500 / 9)
    assert found.tflops == pytest.approx(40.0 * 5 / 9)
    assert found.mfu == pytest.approx(0.25 * 5 / 9)


def test_steps_of_the_world_before_do_not_count() -> None:
    steps = [step(1, 0, **FULL), step(2, 1, tokens_per_s=100.0, tflops=20.0)]
    assert recent_rates(steps) == Rates(100.0, 20.0, None)


def test_lines_of_older_versions_tell_tokens_only() -> None:
    assert recent_rates([step(1), step(2)]) == Rates(pytest.approx(200 / 3), None, None)


def test_nothing_is_known_before_the_first_step_or_without_a_clock() -> None:
    assert recent_rates([]) == Rates()
    assert recent_rates([replace(step(1), end=2.0)]) == Rates()


def test_what_is_not_known_is_left_out_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    writer.append(step(1))
    writer.append(step(2, tokens_per_s=100.0))
    writer.append(step(3, **FULL))
    keys = [set(json.loads(line)) & set(FULL) for line in path.read_text().splitlines()]
    assert keys == [set(), {"tokens_per_s"}, set(FULL)]
    assert [line.mfu for line in read_metrics(path)] == [None, None, 0.25]


def test_the_time_that_is_left_is_that_of_the_steps_that_are_left() -> None:
    assert pace([step(1), step(2), step(3)], 3, 13) == Pace(2.0, 20.0)
    assert pace([step(1), step(9, 1)], 9, 13) == Pace(1.0, 4.0)  # the world is new: its one step is all there is
    assert pace([], 0, 13) == pace([replace(step(1), end=2.0)], 1, 13) == Pace()
    assert pace([step(1), step(2)], 13, 13).remaining_s == 0.0
