"""A guaranteed worker's parent: which deaths it takes as a reason to start another one, and when the run is over."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from liver_slurm.config.schema import JobConfig, JobSection
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import CoordinatorStarted, RunEnded
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run
from liver_slurm.worker.supervisor import IN_A_ROW, LONGEST_WAIT, is_over, judge

ENDED = RunEnded(outcome="failed", exit_code=1, reason="so", step=3)
STARTED = CoordinatorStarted(epoch=1, host="here")


@pytest.mark.parametrize(
    ("code", "noticed", "over", "deaths", "why"),
    [
        (0, False, False, 1, "told to leave"),
        (-9, True, False, 1, "announced"),
        (1, False, True, 1, "the run is over"),
        (1, False, False, IN_A_ROW, "8 times in a row"),
    ],
)
def test_who_is_not_started_again(code: int, noticed: bool, over: bool, deaths: int, why: str) -> None:
    verdict = judge(code, noticed, over, deaths)
    assert verdict.wait is None
    assert why in verdict.reason


def test_who_is_started_again() -> None:
    waits = [judge(-9, False, False, deaths).wait for deaths in range(1, IN_A_ROW)]
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, LONGEST_WAIT]
    assert judge(1, False, False, 1).reason == "it is started again in 1 s"


def test_a_run_is_over_by_its_log(tmp_path: Path) -> None:
    path = create_run(JobConfig(job=JobSection(run_root=str(tmp_path)))).events
    log = EventLog(path)
    for event, over in ((STARTED, False), (ENDED, True), (STARTED, False), (ENDED, True)):
        log.append(event)
        assert is_over(RunDir(path.parent)) is over
    log.close()


def test_a_notice_ends_it_while_it_waits(tmp_path: Path) -> None:
    """Nothing can be imported in the worker, so that it dies at once; its parent ends with a signal's first byte."""
    run_dir = create_run(JobConfig(job=JobSection(run_root=str(tmp_path))))
    run_dir.job_file.write_text("{}{")
    command = [sys.executable, "-m", "liver_slurm.worker", str(run_dir.path), "--role", "live", "--name", "live-0"]
    parent = subprocess.Popen([*command, "--restart"], stderr=subprocess.PIPE, text=True)
    assert parent.stderr is not None
    lines = iter(parent.stderr.readline, "")
    said = [next(line for line in lines if "started again in" in line) for _ in range(3)]
    assert [line.rpartition("in ")[2] for line in said] == ["1 s\n", "2 s\n", "4 s\n"]
    assert all("live-0" in line and "exit code 1" in line for line in said)

    parent.send_signal(signal.SIGTERM)
    assert parent.wait(60) == 1

    parent.stderr.close()
