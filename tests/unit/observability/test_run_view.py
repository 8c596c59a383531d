"""A run that is watched through its files: what is new is read, and what was trained again counts once."""

from __future__ import annotations

from pathlib import Path

import pytest

from liver_slurm.config.load import load_job
from liver_slurm.observability.run_view import RunFiles
from liver_slurm.rundir.metrics import MetricsWriter, StepMetrics, truncate_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run

TINY = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"


def step(number: int, loss: float = 1.0) -> StepMetrics:
    return StepMetrics(
        step=number, loss=loss, grad_norm=1.0, lr=1e-3, tokens=1, consumed_samples=number, generation=0,
        layout="tp1pp1dp1", start=float(number), end=number + 0.5,
    )  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIVER_SITE", "")
    return create_run(load_job(TINY))


def test_the_newest_steps_are_kept(run_dir: RunDir) -> None:
    files = RunFiles(run_dir, keep=30)
    files.refresh()
    assert files.recent == []
    writer = MetricsWriter(run_dir.metrics)
    for number in range(1, 51):
        writer.append(step(number))
        files.refresh()
    writer.close()
    assert [one.step for one in files.newest] == list(range(21, 51))
    assert [one.step for one in files.recent] == list(range(31, 51))
    assert files.status().step == 50


def test_steps_that_are_trained_again_take_the_place_of_those_before(run_dir: RunDir) -> None:
    writer = MetricsWriter(run_dir.metrics)
    for number in range(1, 11):
        writer.append(step(number))
    files = RunFiles(run_dir)
    files.refresh()
    truncate_metrics(run_dir.metrics, 6)
    writer.reopen()
    writer.append(step(7, loss=2.0))
    writer.close()
    files.refresh()
    assert [(one.step, one.loss) for one in files.newest][-2:] == [(6, 1.0), (7, 2.0)]
    assert len(files.newest) == 7
