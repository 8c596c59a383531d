"""A home of its own for each test, and a run to look at."""

from __future__ import annotations

import stat
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from event_samples import committed

from liver_slurm.cli.main import main
from liver_slurm.config.load import load_job
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import CoordinatorStarted, RunEnded, StandbyReady, WorldLive
from liver_slurm.rundir.metrics import MetricsWriter, StepMetrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run, record_run

TINY = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LIVER_SITE", "")
    monkeypatch.setenv("PATH", "/nonexistent")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def liver(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process; returns exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def run_dir() -> RunDir:
    """A run of plain processes that grew once, in its 12th step, and was not heard of since."""
    made = create_run(load_job(TINY))
    record_run(made)
    log = EventLog(made.events)
    log.append(CoordinatorStarted(generation=-1))
    log.append(WorldLive(generation=0, layout="tp1pp1dp2", members=("live-0", "live-1"), step=0))
    log.append(StandbyReady(generation=0, worker="standby-1-0", host="n3", device="cpu", job_id="1"))
    log.append(committed())
    log.append(WorldLive(generation=1, layout="tp1pp1dp3", members=("live-0", "live-1", "standby-1-0"), step=10))
    log.close()
    metrics = MetricsWriter(made.metrics)
    for step in range(1, 13):
        metrics.append(
            StepMetrics(
                step=step,
                loss=5.5 - step / 100,
                grad_norm=1.0,
                lr=1e-3,
                tokens=1024,
                consumed_samples=16 * step,
                generation=int(step > 10),
                layout="tp1pp1dp3" if step > 10 else "tp1pp1dp2",
                start=step,
                end=step + 0.5,
                tokens_per_s=2048.0,
                tflops=400.0,
                mfu=0.4,
            )
        )
    metrics.close()
    return made


@pytest.fixture
def ended(run_dir: RunDir) -> RunDir:
    """The same run, finished."""
    EventLog(run_dir.events).append(RunEnded(generation=1, outcome="finished", exit_code=0, reason="", step=200))
    return run_dir


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a command into an otherwise empty PATH: name, and shell lines that stand for it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def add(name: str, body: str) -> None:
        file = folder / name
        file.write_text("#!/bin/sh\n" + textwrap.dedent(body))
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    return add
