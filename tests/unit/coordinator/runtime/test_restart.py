"""Which checkpoint a run begins anew from."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import small_checkpoint
from coordinator_lab import job

from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import JobConfig
from liver_slurm.coordinator.runtime.journal import Journal
from liver_slurm.coordinator.runtime.restart import begin_restart, first_checkpoint, job_start
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
        small_checkpoint(run_dir.checkpoints, step)
    return run_dir


@pytest.mark.parametrize(
    ("last", "checkpoints", "expected"),
    [(12, [5, 10], 10), (12, [], 0), (0, [], 0), (12, [10, 13], 10), (10, [10], 10), (9, [10], 10)],
)
def test_the_newest_checkpoint_with_metrics(tmp_path: Path, last: int, checkpoints: list[int], expected: int) -> None:
    # LS-17
    run_dir = with_metrics(tmp_path, last, checkpoints)
    journal = Journal(run_dir.journal)
    record = begin_restart(run_dir, journal, "because", {})
    assert (record.step, record.steps_lost, record.reason) == (expected, max(0, last - expected), "because")
    assert record.checkpoint == (str(run_dir.checkpoints / f"step-{expected:08d}") if expected else "")
    assert [line.step for line in read_metrics(run_dir.metrics)] == list(range(1, min(last, expected) + 1))
    assert journal.read() == [record]


def test_a_resumed_run_without_a_checkpoint(tmp_path: Path) -> None:
    first = with_metrics(tmp_path, 6, [5])
    second = with_metrics(tmp_path, 0, [], resume=first)
    record = begin_restart(second, Journal(second.journal), "because", {})
    assert (record.checkpoint, record.step, record.steps_lost) == (str(first.checkpoints / "step-00000005"), 5, 0)


def damage(path: Path) -> None:
    content = bytearray((path / "rank-0").read_bytes())
    content[0] ^= 1
    (path / "rank-0").write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    run_dir = with_metrics(tmp_path, 12, [5, 10])
    newest = run_dir.checkpoints / "step-00000010"
    damage(newest)
    refused: dict[Path, str] = {}
    record = begin_restart(run_dir, Journal(run_dir.journal), "because", refused)
    assert (record.step, record.steps_lost) == (5, 7)
    assert list(refused) == [newest]
    assert "rank-0 is damaged" in refused[newest]


def test_without_a_sound_checkpoint_nothing_is_thrown_away(tmp_path: Path) -> None:
    run_dir = with_metrics(tmp_path, 12, [10])
    damage(run_dir.checkpoints / "step-00000010")
    with pytest.raises(BadInput, match="none of the checkpoints"):
        begin_restart(run_dir, Journal(run_dir.journal), "because", {})
    assert len(list(read_metrics(run_dir.metrics))) == 12


def test_a_resumed_run_with_its_own_checkpoint_needs_no_parent(tmp_path: Path) -> None:
    first = with_metrics(tmp_path, 6, [5])
    second = with_metrics(tmp_path, 9, [8], resume=first)
    shutil.rmtree(first.path)
    record = begin_restart(second, Journal(second.journal), "because", {})
    assert record.step == 8


def batches(run_root: Path, size: int, micro: int = 1) -> JobConfig:
    config = job(run_root=str(run_root))
    return replace(config, train=replace(config.train, global_batch_size=size, micro_batch_size=micro))


def test_a_resumed_run_uses_checkpoints_whose_samples_its_own_follow(tmp_path: Path) -> None:
    """The job says which samples come, from the checkpoint on that was the newest as it was submitted."""
    first = create_run(batches(tmp_path, 16))
    for step in (5, 10):
        small_checkpoint(first.checkpoints, step, consumed_samples=16 * step)
    same, other, uneven = (create_run(batches(tmp_path, *sizes), first) for sizes in ((16, 1), (24, 1), (24, 3)))
    newer = small_checkpoint(first.checkpoints, 15, consumed_samples=16 * 15)
    assert first_checkpoint(same, {})[1] == 15
    refused: dict[Path, str] = {}
    assert first_checkpoint(other, refused)[1] == 10
    assert "its steps took 240 samples, and this job's would have taken 280 by then" in refused.pop(newer)
    assert not refused
    damage(first.checkpoints / "step-00000010")
    assert first_checkpoint(other, {})[1] == 5, "steps up to 10 are trained again as they were"
    with pytest.raises(BadInput, match=r"cannot be resumed: step-00000015: its steps .*; submit the job with --resume"):
        first_checkpoint(uneven, {})


def test_nothing_that_others_can_write_is_resumed(tmp_path: Path) -> None:
    first = with_metrics(tmp_path, 6, [5])
    second = with_metrics(tmp_path, 0, [], resume=first)
    first.job_file.chmod(0o664)
    with pytest.raises(BadInput, match=r"job\.json can be written by others \(mode 0664\); close it: chmod -R go-w"):
        first_checkpoint(second, {})


def test_a_restart_without_a_checkpoint_begins_where_the_run_did(tmp_path: Path) -> None:
    start = small_checkpoint(tmp_path / "elsewhere", 7)
    config = job(run_root=str(tmp_path))
    run_dir = create_run(replace(config, train=replace(config.train, start_from=str(start))))
    assert first_checkpoint(run_dir, {}) == (str(start), 0)
    record = begin_restart(run_dir, Journal(run_dir.journal), "because", {})
    assert (record.checkpoint, record.step) == (str(start), 0)
    (start / "rank-0").unlink()
    with pytest.raises(BadInput, match=r"train\.start_from: .* cannot be used"):
        first_checkpoint(run_dir, {})
