"""How a process is reached: beside us, or by a step in the run's own job."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import LiverError
from liver_slurm.base.faults import Fault
from liver_slurm.chaos import reach as reaching
from liver_slurm.chaos.reach import Reach, is_own
from liver_slurm.chaos.schedule import Strike, Target
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.records import JobInfo

LIVE = JobInfo(
    job_id="20+1",
    state="RUNNING",
    partition="live",
    nodes=("n1", "n2"),
    preempt_time=None,
    restarts=0,
    reason="",
    time_limit=None,
    end_time=None,
    name="x",
    comment="",
    number=21,
)
JOBS = [
    replace(LIVE, job_id="20+0", nodes=("n0",), number=20),
    LIVE,
    replace(LIVE, job_id="30", nodes=("n7",), number=30),
    replace(LIVE, job_id="31", nodes=("n8",), number=31, state="COMPLETING"),
]
AGENT = [sys.executable, "-m", "liver_slurm.chaos.agent"]


def strike(host: str, job_id: str, **proof: Any) -> Strike:
    return Strike(0, Fault.STOP, Target("w", "live", host, 4711, **{"began": 99, **proof}, job_id=job_id), 7.5)


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Reach:
    monkeypatch.setattr(reaching, "jobs_of_run", lambda *_: JOBS)
    client: Any = object()
    return Reach(RunDir(tmp_path), "run", "20", client, host="login")


def test_on_this_host_it_is_a_process_of_ours(reach: Reach) -> None:
    command = reach.command(strike("login", "20"))
    assert command == [*AGENT, "stop", "4711", "--began", "99", "--seconds", "7.5", "--detach"]
    command = reach.command(strike("login", "20", began=None, port=5000))
    assert command == [*AGENT, "stop", "4711", "--port", "5000", "--seconds", "7.5", "--detach"]


@pytest.mark.parametrize(
    ("host", "job_id", "job", "group", "node"),
    [
        ("n2", "20", "20", ["--het-group=1"], "n2"),
        ("n0", "20", "20", ["--het-group=0"], "n0"),
        ("n1", "21", "20", ["--het-group=1"], "n1"),
        ("n7", "30", "30", [], "n7"),
        ("machine-of-n7", "30", "30", [], "n7"),  # its name for itself is not Slurm's, but the job has one node
    ],
)
def test_on_another_host_it_is_a_step_in_the_runs_job(
    reach: Reach, host: str, job_id: str, job: str, group: list[str], node: str
) -> None:
    command = reach.command(strike(host, job_id))
    assert command[: 2 + len(group)] == ["srun", f"--jobid={job}", *group]
    assert {"--overlap", f"--nodelist={node}", "--nodes=1", "--ntasks=1"} <= set(command)
    agent = [*AGENT, "stop", "4711", "--began", "99", "--seconds", "7.5"]
    assert command[-len(agent) :] == agent
    assert "--detach" not in command  # a step lasts as long as its task


@pytest.mark.parametrize(("host", "job_id"), [("n9", "20"), ("n8", "31"), ("n7", "666")])
def test_a_host_without_a_job_of_the_run_is_not_reached(reach: Reach, host: str, job_id: str) -> None:
    with pytest.raises(LiverError, match="no running job"):
        reach.command(strike(host, job_id))


def test_plain_processes_are_on_one_host(tmp_path: Path) -> None:
    plain = Reach(RunDir(tmp_path), "run", "", None)
    assert plain.command(strike(os.uname().nodename, "live-0"))[:3] == AGENT
    with pytest.raises(LiverError, match="only where they run"):
        plain.command(strike("n1", "live-0"))


def test_whose_run_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_own(RunDir(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert not is_own(RunDir(tmp_path))


def test_a_coordinator_on_a_host_of_another_name_is_in_component_0(reach: Reach) -> None:
    target = Target("coordinator", "coordinator", "machine-of-n0", 7, None, port=5000, job_id="20")
    command = reach.command(Strike(0, Fault.KILL, target, 0.0))
    assert command[:3] == ["srun", "--jobid=20", "--het-group=0"]
    assert "--nodelist=n0" in command
