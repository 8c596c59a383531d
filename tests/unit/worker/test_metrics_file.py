"""Metrics whatever the file system does: nothing is lost that can be kept, and nobody waits for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coordinator_lab import PATIENCE, until

from liver_slurm.rundir.metrics import MetricsWriter, StepMetrics, read_metrics
from liver_slurm.worker import metrics_file
from liver_slurm.worker.metrics_file import MetricsFile


def step(number: int) -> StepMetrics:
    return StepMetrics(
        step=number, loss=1.0, grad_norm=0.5, lr=1e-3, tokens=64, consumed_samples=16 * number,
        generation=0, layout="tp1pp1dp1", start=1.0, end=2.0,
    )  # fmt: skip


class Kept:
    """A run's metrics, and what was said of them."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.path = folder / "metrics.jsonl"
        self.said: list[tuple[int, str]] = []
        self.file = MetricsFile(self.path, lambda waiting, error: self.said.append((waiting, error)), **options)

    def append(self, *numbers: int) -> None:
        for number in numbers:
            self.file.append(step(number))

    def written(self) -> list[int]:
        return [line.step for line in read_metrics(self.path)]


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path, retry=0.05, handoff=PATIENCE)


def failing(monkeypatch: pytest.MonkeyPatch, error: OSError | None, part: int = 0) -> Callable[[], None]:
    """Have writing fail, after ``part`` bytes of a line; returns what repairs it."""
    real = os.write

    def write(descriptor: int, content: bytes) -> int:
        if b'"step"' not in content:
            return real(descriptor, content)
        if part:
            return real(descriptor, content[:part])
        assert error is not None
        raise error

    monkeypatch.setattr("liver_slurm.base.jsonl.os.write", write)
    return lambda: monkeypatch.setattr("liver_slurm.base.jsonl.os.write", real)


def test_steps_come_into_the_file(kept: Kept) -> None:
    kept.append(1, 2, 3)
    assert kept.file.drain(PATIENCE) == ""
    assert kept.written() == [1, 2, 3]
    assert kept.said == []


@pytest.mark.parametrize("part", [0, 30])
def test_what_cannot_be_written_is_written_later_and_once(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    kept.append(1)
    assert kept.file.drain(PATIENCE) == ""
    repair = failing(monkeypatch, OSError(28, "No space left on device"), part)
    kept.append(2, 3)
    until(lambda: kept.said, "it is said")
    assert kept.said[0][1] == "No space left on device"
    assert "steps 2 to 3 (No space left on device)" in kept.file.drain(0.1)
    kept.append(4)
    repair()
    assert kept.file.drain(PATIENCE) == ""
    assert kept.written() == [1, 2, 3, 4]
    until(lambda: kept.said[-1] == (0, ""), "that all are written is said")


def test_a_folder_that_is_gone_and_comes_back(kept: Kept) -> None:
    kept.path.parent.rename(kept.path.parent.with_name("away"))
    kept.append(1, 2)
    until(lambda: kept.said, "it is said")
    kept.path.parent.with_name("away").rename(kept.path.parent)
    assert kept.file.drain(PATIENCE) == ""
    assert kept.written() == [1, 2]


def test_the_next_writer_waits_for_the_last_line_of_the_one_before(kept: Kept) -> None:
    before = MetricsWriter(kept.path)
    before.append(step(1))
    kept.file.begin(after=2)
    kept.append(3, 4)
    assert "steps 3 to 4" in kept.file.drain(0.5)
    assert kept.written() == [1]
    before.append(step(2))  # it lay in another machine's memory until now
    assert kept.file.drain(PATIENCE) == ""
    assert kept.written() == [1, 2, 3, 4]


def test_it_does_not_wait_for_ever(tmp_path: Path) -> None:
    kept = Kept(tmp_path, retry=0.05, handoff=0.2)
    kept.file.begin(after=2)
    kept.append(3)
    assert kept.file.drain(PATIENCE) == ""
    assert kept.written() == [3]


def test_the_first_writer_waits_for_nobody(kept: Kept) -> None:
    kept.file.begin(after=-1)
    kept.append(101)
    assert kept.file.drain(PATIENCE) == ""
    assert kept.written() == [101]


def test_a_file_that_was_replaced_is_opened_anew(kept: Kept) -> None:
    kept.append(1, 2, 3)
    assert kept.file.drain(PATIENCE) == ""
    kept.path.unlink()
    MetricsWriter(kept.path).append(step(1))
    kept.file.begin(after=-1)
    kept.append(2)
    assert kept.file.drain(PATIENCE) == ""
    assert kept.written() == [1, 2]


def test_what_is_given_up_is_counted(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_file, "MOST_WAITING", 3)
    repair = failing(monkeypatch, OSError(5, "Input/output error"))
    kept.append(*range(1, 8))
    repair()
    missing, written = kept.file.drain(PATIENCE), kept.written()
    assert written[-3:] == [5, 6, 7]
    assert len(written) <= 4, "the one that was being written may be given up, too"
    assert missing == f"{7 - len(written)} steps, given up"


def test_a_step_that_is_written_while_it_is_given_up_is_not_counted(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_file, "MOST_WAITING", 1)
    begun, goes_on, real = threading.Event(), threading.Event(), os.write

    def write(descriptor: int, content: bytes) -> int:
        if b'"step"' in content and not begun.is_set():
            begun.set()
            assert goes_on.wait(PATIENCE)
        return real(descriptor, content)

    monkeypatch.setattr("liver_slurm.base.jsonl.os.write", write)
    kept.append(1)
    assert begun.wait(PATIENCE)
    kept.append(2)
    assert kept.file.given_up == 1
    goes_on.set()
    assert kept.file.drain(PATIENCE) == ""
    assert kept.written() == [1, 2]
