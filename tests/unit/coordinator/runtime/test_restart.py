"""Which checkpoint a run begins anew from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from coordinator_lab import job

from liver_slurm.coordinator.runtime.journal import Journal
from liver_slurm.coordinator.runtime.restart import begin_anew, job_start
from liver_slurm.rundir.checkpoints import begin_checkpoint, checkpoint_path, publish_checkpoint
from liver_slurm.rundir.metrics import MetricsWriter, StepMetrics, read_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run
from liver_slurm.scheduler.ports import JobStart


def test_the_start_of_a_job() -> None:
    assert job_start({}) == JobStart("", 0)
    assert job_start({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}) == JobStart("7", 2)


def with_metrics(folder: Path, last: int, checkpoints: list[int], resume: RunDir | None = None) -> RunDir:
    run_dir = create_run(job(run_root=str(folder)), resume)
    writer = MetricsWriter(run_dir.metrics)
    for step in range(1, last + 1):
        values: dict[str, Any] = {"loss": 1.0, "grad_norm": 1.0, "lr": 1.0, "tokens": 1, "consumed_samples": step}
        writer.append(StepMetrics(step=step, generation=0, layout="tp1pp1dp1", start=0.0, end=0.0, **values))
    for step in checkpoints:
        path = checkpoint_path(run_dir.checkpoints, step)
        begin_checkpoint(path)
        publish_checkpoint(path, {"step": step})
    return run_dir


@pytest.mark.parametrize(
    ("last", "checkpoints", "expected"),
    [(12, [5, 10], 10), (12, [], 0), (0, [], 0), (12, [10, 13], 10), (10, [10], 10)],
)
def test_the_newest_checkpoint_with_metrics(tmp_path: Path, last: int, checkpoints: list[int], expected: int) -> None:
    # LS-17
    run_dir = with_metrics(tmp_path, last, checkpoints)
    journal = Journal(run_dir.journal)
    record = begin_anew(run_dir, journal, "because")
    assert (record.step, record.steps_lost, record.reason) == (expected, last - expected, "because")
    assert record.checkpoint == (str(run_dir.checkpoints / f"step-{expected:08d}") if expected else "")
    assert [line.step for line in read_metrics(run_dir.metrics)] == list(range(1, expected + 1))
    assert journal.read() == [record]


def test_a_resumed_run_without_a_checkpoint(tmp_path: Path) -> None:
    first = with_metrics(tmp_path, 6, [5])
    second = with_metrics(tmp_path, 0, [], resume=first)
    record = begin_anew(second, Journal(second.journal), "because")
    assert (record.checkpoint, record.step, record.steps_lost) == (str(first.checkpoints / "step-00000005"), 5, 0)
