"""Runs as plain processes, with real workers: what is killed, and what must not be left."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from coordinator_lab import PATIENCE, job, until
from interrupting import default_signals

from liver_slurm.base.errors import ControlError
from liver_slurm.base.jsonl import read_lines
from liver_slurm.config.schema import DataSection
from liver_slurm.protocol.client import request
from liver_slurm.protocol.messages import CheckpointRequest, StatusRequest
from liver_slurm.rundir.event_log import read_documents
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run

SCRIPT = Path(__file__).parents[1] / "support" / "run_local_job.py"


class LocalRun:
    """A runner in a process of its own."""

    def __init__(self, folder: Path, steps: int) -> None:
        text = folder / "text.txt"
        text.write_text("To be trained on, again and again. " * 400)
        config = job(workers=2, steps=steps, run_root=str(folder), lost_after=60.0, heartbeat=0.2)
        layouts = ("tp1pp1dp1", "tp1pp1dp2", "tp1pp1dp3", "tp1pp1dp4")
        config = replace(
            config,
            data=DataSection(paths=(str(text),)),
            elastic=replace(config.elastic, layouts=layouts),
        )
        self.run_dir: RunDir = create_run(config)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(SCRIPT), str(self.run_dir.path), *arguments]
        with (self.run_dir.logs / "runner.log").open("ab") as log:
            self.runner = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=default_signals)
        return self.runner

    def processes(self, what: str = "") -> list[psutil.Process]:
        """Living processes of the run whose command line has ``what`` in it."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or ())
            if str(self.run_dir.path) in line and what in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def step(self) -> int:
        try:
            return int(request(self.run_dir, StatusRequest(), timeout=2.0).result["step"])
        except ControlError:
            return -1

    def count(self, event: str) -> int:
        return sum(line["event"] == event for line in read_documents(self.run_dir.events))

    def sizes(self) -> list[int]:
        """Workers of each world that was committed."""
        events = read_documents(self.run_dir.events)
        return [len(line["members"]) for line in events if line["event"] == "reconfiguration_committed"]


@pytest.fixture
def long_run(tmp_path: Path) -> Iterator[LocalRun]:
    run = LocalRun(tmp_path, steps=100_000)
    yield run
    for process in run.processes():
        process.kill()


def test_grows_gives_back_and_outlives_its_coordinator(long_run: LocalRun) -> None:
    # LS-1, LS-14, LS-26
    run, runner = long_run, long_run.start("2", "2")
    # Perhaps in two steps: the second standby may be warm much later than the first.
    until(lambda: run.sizes()[-1:] == [4], "the run grows")
    grown = len(run.sizes())
    run.processes("liver_slurm.coordinator")[0].kill()
    until(lambda: run.count("recovered") == 1, "a new coordinator")
    standby = run.processes("--name standby-local-1")[0]
    standby.send_signal(signal.SIGTERM)
    standby.wait(PATIENCE)
    # Shrunk, then grown: the freed place is used again.
    until(lambda: min(run.sizes()[grown:], default=4) < 4 and run.sizes()[-1] == 4, "the run grows again")
    assert run.count("notice") == 1
    runner.terminate()
    assert runner.wait(PATIENCE) == 143
    steps = [line["step"] for line in read_lines(run.run_dir.metrics)]
    assert steps == list(range(1, len(steps) + 1)), "every step once"
    assert run.processes() == []


def test_finishes(tmp_path: Path) -> None:
    run = LocalRun(tmp_path, steps=5)
    assert run.start("1", "0").wait(PATIENCE) == 0
    assert [line["step"] for line in read_lines(run.run_dir.metrics)] == [1, 2, 3, 4, 5]
    assert run.processes() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_and_leaves_nothing(long_run: LocalRun, number: signal.Signals, code: int) -> None:
    # LS-26
    runner = long_run.start("2", "1")
    until(lambda: long_run.step() > 1, "training")
    runner.send_signal(number)
    assert runner.wait(PATIENCE) == code
    (ended,) = [line for line in read_documents(long_run.run_dir.events) if line["event"] == "run_ended"]
    assert ended["reason"] == f"cancelled by {number.name}"
    assert long_run.processes() == []


def test_a_run_that_is_cancelled_before_its_coordinator_listens_says_so(long_run: LocalRun) -> None:
    runner = long_run.start("2", "0")
    until(lambda: bool(long_run.processes("liver_slurm.coordinator")), "the coordinator's process is there")
    runner.send_signal(signal.SIGINT)
    assert runner.wait(PATIENCE) == 130
    (ended,) = [line for line in read_documents(long_run.run_dir.events) if line["event"] == "run_ended"]
    assert (ended["outcome"], ended["reason"]) == ("cancelled", "cancelled by SIGINT")
    assert (ended["generation"], ended["step"]) == (-1, 0)
    assert long_run.processes() == []


@pytest.mark.slow
def test_a_runner_that_is_killed_leaves_nothing_for_long(long_run: LocalRun) -> None:
    runner = long_run.start("2", "1")
    until(lambda: long_run.step() > 1 and long_run.count("standby_ready") == 1, "training")
    runner.kill()
    runner.wait()
    until(lambda: not long_run.processes(), "all processes are gone")


def test_a_live_worker_that_is_killed_comes_back(long_run: LocalRun) -> None:
    runner = long_run.start("2", "0")
    until(lambda: long_run.step() > 1, "training")
    parent = psutil.Process(long_run.processes("--name live-1 --restart")[0].pid)
    for deaths in (1, 2):
        (worker,) = parent.children()
        worker.kill()
        until(lambda deaths=deaths: long_run.sizes() == [1, 2] * deaths, "one goes on alone, and grows again")
    lost = [line for line in read_documents(long_run.run_dir.events) if line["event"] == "worker_lost"]
    assert [line["worker"] for line in lost] == ["live-1", "live-1.2"]
    assert "killed by SIGKILL" in long_run.run_dir.worker_log("live-1").read_text()
    runner.terminate()
    assert runner.wait(PATIENCE) == 143
    steps = [line["step"] for line in read_lines(long_run.run_dir.metrics)]
    assert steps == list(range(1, len(steps) + 1)), "every step once"
    assert long_run.processes() == []


def test_all_workers_that_are_killed_at_once_come_back(long_run: LocalRun) -> None:
    """Before the first checkpoint the run begins again as it did; later it goes on from the newest, in the same run."""
    # LS-35
    runner = long_run.start("2", "0")

    def kill_all() -> None:
        parents = [long_run.processes(f"--name live-{number} --restart")[0] for number in (0, 1)]
        for worker in [child for parent in parents for child in parent.children()]:
            worker.kill()

    def planned() -> list[dict[str, Any]]:
        return [line for line in read_documents(long_run.run_dir.events) if line["event"] == "recovery_planned"]

    until(lambda: long_run.step() > 1, "training")
    kill_all()
    until(lambda: long_run.sizes()[-1:] == [2], "both are back")
    assert {line["state_from"] for line in planned()} <= {"start", "survivors", "mirrors"}, "there is no checkpoint"
    reached = long_run.step()
    until(lambda: long_run.step() > reached + 1, "training")
    request(long_run.run_dir, CheckpointRequest(), timeout=5.0)
    until(lambda: long_run.count("checkpoint_written") == 1, "a checkpoint")
    worlds = long_run.count("world_live")
    kill_all()
    until(lambda: long_run.sizes()[-1] == 2 and long_run.count("world_live") > worlds, "both are back again")
    assert planned()[-1]["state_from"] == "checkpoint"
    runner.terminate()
    assert runner.wait(PATIENCE) == 143
    steps = [line["step"] for line in read_lines(long_run.run_dir.metrics)]
    assert steps == list(range(1, len(steps) + 1)), "every step once"
    assert long_run.processes() == []


def test_only_the_last_live_worker_that_is_killed_ends_the_run(long_run: LocalRun) -> None:
    # LS-34
    runner = long_run.start("2", "0")
    until(lambda: long_run.step() > 1, "training")
    long_run.processes("--name live-1 --restart")[0].kill()  # its parent, and it with it
    until(lambda: long_run.sizes() == [1], "the other goes on")
    reached = long_run.step()
    until(lambda: long_run.step() > reached + 1, "training")
    long_run.processes("--name live-0 --restart")[0].kill()
    assert runner.wait(PATIENCE) == 1
    (ended,) = [line for line in read_documents(long_run.run_dir.events) if line["event"] == "run_ended"]
    assert "live-0 of the live world was lost" in ended["reason"]
    assert "no allowed layout for the 0 workers that are left" in ended["reason"]
    assert "there is no checkpoint to continue from" in ended["reason"]
    assert long_run.processes() == []
