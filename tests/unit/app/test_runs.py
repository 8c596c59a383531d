"""Of several runs of a name, the one that goes on is meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from liver_slurm.app.api import Job
from liver_slurm.app.runs import find_run
from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import JobConfig, JobSection
from liver_slurm.observability.summary import PREPARED
from liver_slurm.rundir import address
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import CoordinatorStarted, RunEnded
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run, record_run

GONE = 2**22 + 1
"""More than a process can be numbered."""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIVER_SITE", raising=False)
    monkeypatch.chdir(tmp_path)
    return JobConfig(job=JobSection(name="tiny", run_root=str(tmp_path / "runs")))


def begun(config: JobConfig, process: int) -> RunDir:
    run_dir = create_run(config)
    record_run(run_dir)
    EventLog(run_dir.events).append(CoordinatorStarted())
    address.write(run_dir.address_file, address.Address("127.0.0.1", 1, 1, process))
    return run_dir


def prepared(config: JobConfig) -> RunDir:
    run_dir = create_run(config)
    record_run(run_dir)
    run_dir.batch_script.write_text("#!/bin/bash")
    return run_dir


def test_the_one_that_goes_on_is_meant_though_it_is_not_the_newest(config: JobConfig) -> None:
    lives = begun(config, os.getpid())
    ended, later = begun(config, os.getpid()), prepared(config)
    EventLog(ended.events).append(RunEnded(outcome="finished", exit_code=0, reason="", step=1))
    begun(config, GONE)
    assert find_run("tiny") == find_run("tiny", only=True) == lives
    assert find_run(later.path.name) == later


def test_where_several_go_on_the_one_that_is_meant_is_not_guessed(config: JobConfig) -> None:
    first, second = begun(config, os.getpid()), begun(config, os.getpid())
    assert find_run("tiny") == second
    with pytest.raises(BadInput) as refused:
        find_run("tiny", only=True)
    assert str(refused.value) == (f"2 runs named 'tiny' go on; name one of them: {second.path.name}, {first.path.name}")


def test_where_none_goes_on_the_newest_is_meant(config: JobConfig) -> None:
    begun(config, GONE)
    newest = prepared(config)
    assert find_run("tiny", only=True) == newest


def test_a_run_that_nobody_has_started_says_so(config: JobConfig) -> None:
    job = Job(prepared(config))
    with pytest.raises(BadInput, match="is not going on: it is prepared, and nobody has started it"):
        job.cancel()
    status = job.status()
    assert status["state"] == PREPARED
    assert "nobody has started it" in status["reason"]
