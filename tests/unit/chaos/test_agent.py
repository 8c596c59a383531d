"""The agent strikes a process that is proven, and undoes it when its time is over or its caller is gone."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from coordinator_lab import PATIENCE, until

from liver_slurm.base.faults import started
from liver_slurm.chaos.hold import AgentHold

AGENT = [sys.executable, "-m", "liver_slurm.chaos.agent"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def hold(fault: str, pid: int, seconds: float = 0.0, began: int | None = None) -> AgentHold:
    proof = str(started(pid) if began is None else began)
    command = [*AGENT, fault, str(pid), "--began", proof, "--seconds", str(seconds), "--detach"]
    return AgentHold(command, {}, patience=PATIENCE)


def stopped(process: subprocess.Popen[bytes]) -> bool:
    return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED


def test_it_kills_whom_it_was_told_to_and_nobody_else(sleeper: subprocess.Popen[bytes]) -> None:
    refused = hold("kill", sleeper.pid, began=started(sleeper.pid) + 1)
    assert refused.outcome.startswith("refused: ")
    assert "its number was given away" in refused.outcome
    assert sleeper.poll() is None
    done = hold("kill", sleeper.pid)
    assert done.outcome == "struck"
    assert sleeper.wait(PATIENCE) == -signal.SIGKILL
    assert done.wait(time.monotonic() + PATIENCE) == "ended"


@pytest.mark.parametrize("fault", ["stop", "delay"])
def test_it_lets_a_process_go_on_when_its_time_is_over(sleeper: subprocess.Popen[bytes], fault: str) -> None:
    held = hold(fault, sleeper.pid, seconds=0.5)
    assert held.outcome == "struck"
    assert held.wait(time.monotonic() + PATIENCE) == "undone"
    assert not stopped(sleeper)


def test_it_undoes_what_it_did_when_its_caller_lets_go(sleeper: subprocess.Popen[bytes]) -> None:
    before = resource.prlimit(sleeper.pid, resource.RLIMIT_FSIZE)
    held = [hold("stop", sleeper.pid, seconds=3600), hold("disk-full", sleeper.pid, seconds=3600)]
    until(lambda: stopped(sleeper), "stopped")
    assert resource.prlimit(sleeper.pid, resource.RLIMIT_FSIZE)[0] == 0
    assert [one.over() for one in held] == [None, None]
    for one in held:
        one.release()
        assert one.wait(time.monotonic() + PATIENCE) == "undone"
    assert not stopped(sleeper)
    assert resource.prlimit(sleeper.pid, resource.RLIMIT_FSIZE) == before


def test_it_undoes_what_it_did_when_its_caller_is_killed(sleeper: subprocess.Popen[bytes]) -> None:
    script = (
        "import sys, time\nfrom liver_slurm.chaos.hold import AgentHold\n"
        "held = AgentHold(sys.argv[1:], {})\nprint(held.outcome, flush=True)\ntime.sleep(1000)"
    )
    command = [*AGENT, "stop", str(sleeper.pid), "--began", str(started(sleeper.pid)), "--seconds", "3600", "--detach"]
    caller = subprocess.Popen([sys.executable, "-c", script, *command], stdout=subprocess.PIPE)
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"struck\n"
    until(lambda: stopped(sleeper), "stopped")
    caller.kill()
    caller.communicate()
    until(lambda: not stopped(sleeper), "it runs again")


def test_it_strikes_nobody_without_a_proof(sleeper: subprocess.Popen[bytes]) -> None:
    done = subprocess.run([*AGENT, "kill", str(sleeper.pid)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(":")[0]) == (1, "refused")
    assert sleeper.poll() is None


def test_an_agent_that_cannot_start_is_a_refusal_with_its_last_words() -> None:
    failed = AgentHold([sys.executable, "-c", "raise SystemExit('no such node')"], {}, patience=PATIENCE)
    assert failed.outcome == "refused: the agent failed: no such node"
    silent = AgentHold([sys.executable, "-c", "input()"], {}, patience=0.01)
    assert silent.outcome == "refused: the agent does not answer"
