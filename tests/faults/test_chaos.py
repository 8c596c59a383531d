"""``liver-slurm chaos`` at a run with a real coordinator: what it strikes, writes down, and undoes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
from coordinator_lab import PATIENCE, Lab, job, until
from interrupting import default_signals

from liver_slurm.base.jsonl import read_lines


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two guaranteed workers and a standby in no world."""
    config = job(lost_after=120.0, staging=True)
    one = Lab(tmp_path_factory.mktemp("run"), replace(config, elastic=replace(config.elastic, max_workers=2)))
    one.coordinator()
    for name in ("live-0", "live-1", "standby-a"):
        one.worker(name)
    one.steady("tp1pp1dp2")
    one.wait_event("standby_ready")
    yield one
    one.close()


def chaos(lab: Lab, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "liver_slurm", "chaos", str(lab.run_dir.path), "--seed", "7", *arguments]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, preexec_fn=default_signals, **output)  # type: ignore[call-overload,no-any-return]


def journal(lab: Lab) -> list[dict[str, Any]]:
    return list(read_lines(lab.run_dir.chaos))


@pytest.fixture(autouse=True)
def _fresh_journal(lab: Lab) -> None:
    lab.run_dir.chaos.unlink(missing_ok=True)


def stopped(lab: Lab, name: str) -> bool:
    return psutil.Process(lab.processes[name].pid).status() == psutil.STATUS_STOPPED


def test_ctrl_c_undoes_what_is_in_force(lab: Lab) -> None:
    running = chaos(lab, "--rate", "20/s", "--faults", "stop", "--targets", "live,standby")
    # All three; then there is nobody left to strike.
    until(lambda: any("no target" in line["outcome"] for line in journal(lab)), "all are stopped")
    assert all(stopped(lab, name) for name in ("live-0", "live-1", "standby-a"))
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=PATIENCE)
    assert (running.returncode, len(errors.splitlines())) == (130, 1)
    assert not any(stopped(lab, name) for name in ("live-0", "live-1", "standby-a"))
    outcomes = [(line["number"], line["outcome"]) for line in journal(lab) if line["target"]]
    struck = {number for number, outcome in outcomes if outcome == "struck"}
    undone = {number for number, outcome in outcomes if outcome == "undone"}
    assert struck == undone
    assert len(struck) >= 3
    begun = lab.status()["step"]
    until(lambda: lab.status()["step"] > begun, "training goes on")


def test_a_number_that_was_given_away_is_not_struck(lab: Lab) -> None:
    """The address names another process of ours: it does not listen where the coordinator answers."""
    written = lab.run_dir.address_file.read_text()
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        where = json.loads(written)
        lab.run_dir.address_file.write_text(json.dumps({**where, "pid": stranger.pid}))
        running = chaos(lab, "--rate", "2/s", "--faults", "kill", "--targets", "coordinator", "--duration", "4s")
        assert running.wait(PATIENCE) == 0
        running.communicate()
        assert {line["outcome"] for line in journal(lab)} == {
            f"refused: process {stranger.pid} does not listen on port {where['port']}"
        }
        assert stranger.poll() is None
    finally:
        lab.run_dir.address_file.write_text(written)
        stranger.kill()
        stranger.wait()


def test_a_coordinator_that_is_killed_and_what_is_printed(lab: Lab) -> None:
    # LS-14
    old = lab.processes["coordinator"]
    running = chaos(lab, "--rate", "2/s", "--faults", "kill", "--targets", "coordinator", "--duration", "5s", "--json")
    assert old.wait(PATIENCE) == -signal.SIGKILL
    output, errors = running.communicate(timeout=PATIENCE)
    assert (running.returncode, errors) == (0, "")
    said = json.loads(output)
    assert (said["struck"], said["seed"]) == (1, 7)
    assert said["entries"] == journal(lab)
    # Once it is dead nobody is struck: there is no one who says whom.
    first, *others = journal(lab)
    assert (first["fault"], first["target"], first["pid"]) == ("kill", "coordinator", old.pid)
    assert {line["outcome"].split(":")[0] for line in others} == {"skipped"}
    lab.coordinator()
    lab.steady("tp1pp1dp2")
