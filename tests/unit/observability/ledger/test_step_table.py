"""Steps are read as columns, whatever state the file is in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from liver_slurm.observability.ledger import step_table
from liver_slurm.observability.ledger.step_table import read_steps


def line(step: int, **changes: object) -> str:
    usual = {"step": step, "loss": 2.5, "tokens": 64, "generation": 0, "start": step * 1.0, "end": step + 0.5}
    return json.dumps({**usual, **changes}) + "\n"


@pytest.fixture(params=[1 << 24, 100])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that are read at a time: all, and so few that lines are cut."""
    monkeypatch.setattr(step_table, "CHUNK", request.param)
    return int(request.param)


@pytest.mark.usefixtures("chunk")
def test_lines_that_are_torn_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1) + '{"step": 2, "st\n' + "\n" + line(3) + '{"other": 1}\n' + line(4)[:-8])
    assert read_steps(path).step.tolist() == [1, 3]


@pytest.mark.usefixtures("chunk")
def test_what_is_not_known_is_not_a_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, loss=None) + line(2, mfu=0.4, data_s=0.1))
    steps = read_steps(path)
    assert np.isnan(steps.loss).tolist() == [True, False]
    assert np.isnan(steps.mfu).tolist() == [True, False]
    assert steps.data_s[1] == 0.1


def test_of_a_step_that_stands_there_twice_the_last_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1) + line(3) + line(2) + line(2, generation=1))
    steps = read_steps(path)
    assert steps.step.tolist() == [1, 2, 3]
    assert steps.generation.tolist() == [0, 1, 0]


def test_times_never_go_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, end=9.0) + line(2) + line(9))
    steps = read_steps(path)
    assert steps.start.tolist() == [1.0, 2.0, 9.0]
    assert steps.end.tolist() == [2.0, 2.5, 9.5]


def test_a_run_without_steps(tmp_path: Path) -> None:
    assert len(read_steps(tmp_path / "metrics.jsonl")) == 0
