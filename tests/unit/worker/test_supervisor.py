"""A guaranteed worker's parent: which deaths it takes as a reason to start another one, and when the run is over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from liver_slurm.base.errors import DECIDED, REFUSED
from liver_slurm.config.schema import JobConfig, JobSection
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run
from liver_slurm.worker import supervisor
from liver_slurm.worker.supervisor import IN_A_ROW, LONGEST_WAIT, judge, supervise


@pytest.mark.parametrize(
    ("code", "noticed", "over", "deaths", "why"),
    [
        (DECIDED, False, False, 1, "told to leave"),
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
    assert judge(0, False, False, 1).wait == 1.0, "nobody told it to leave"
    assert judge(REFUSED, False, False, 1).wait == 1.0, "another process may be let in"


def test_one_that_exits_by_itself_is_started_again_whatever_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, told = [0, REFUSED, DECIDED], list[Any]()
    worker = SimpleNamespace(pid=9, wait=lambda: codes.pop(0))
    monkeypatch.setattr(supervisor.subprocess, "Popen", lambda *_, **__: worker)
    monkeypatch.setattr(supervisor, "signal_pipe", lambda: os.open(os.devnull, os.O_RDONLY))
    monkeypatch.setattr(supervisor, "_noticed", lambda signals, seconds: False)
    monkeypatch.setattr(supervisor, "_tell", lambda run_dir, message: told.append(message))
    assert supervise(RunDir(tmp_path), "live-0", []) == 0
    assert not codes
    assert [(one.worker, one.reason, one.again) for one in told] == [("live-0", "exit code 0", True)]


@pytest.mark.parametrize(
    ("work", "code"),
    [
        ("raise SystemExit(0)", 1),
        ("raise KeyError('x')", 1),
        ("return False", DECIDED),
        ("return True", REFUSED),
    ],
)
def test_a_worker_that_was_told_to_leave_says_so_by_its_code(tmp_path: Path, work: str, code: int) -> None:
    program = f"""
from pathlib import Path
from liver_slurm.worker import bootstrap

def work(*_):
    {work}

bootstrap._work = work
bootstrap.main(Path({str(tmp_path)!r}), "live", "live-0", left={DECIDED})
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == code


@pytest.mark.parametrize(
    ("error", "word", "trace"),
    [
        ("BadInput('nope:f: there is no module')", "nope:f: there is no module", False),
        ("KeyError('x')", "KeyError: 'x'", True),
        ("SystemExit(3)", "SystemExit: 3", True),
    ],
)
def test_why_a_worker_failed_is_told_by_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, word: str, trace: bool
) -> None:
    """No coordinator has welcomed it, so its own message goes nowhere; what users did wrong is a line in the log."""
    (tmp_path / "failing.py").write_text(
        f"""
import sys
from pathlib import Path
from liver_slurm.base.errors import BadInput
from liver_slurm.worker import bootstrap

def work(*_):
    raise {error}

bootstrap._work = work
arguments = sys.argv
bootstrap.main(Path({str(tmp_path)!r}), "live", "live-0", {DECIDED}, int(arguments[arguments.index("--last-word") + 1]))
"""
    )
    told, start = list[Any](), subprocess.Popen
    monkeypatch.setattr(
        supervisor.subprocess,
        "Popen",
        lambda command, **options: start([sys.executable, str(tmp_path / "failing.py"), *command[3:]], **options),
    )
    monkeypatch.setattr(supervisor, "signal_pipe", lambda: os.open(os.devnull, os.O_RDONLY))
    monkeypatch.setattr(supervisor, "_noticed", lambda signals, seconds: seconds > 0)
    monkeypatch.setattr(supervisor, "_tell", lambda run_dir, message: told.append(message))
    assert supervise(RunDir(tmp_path), "live-0", []) == 1
    assert {one.reason for one in told} == {word}
    assert ("Traceback" in RunDir(tmp_path).worker_log("live-0").read_text()) is trace


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
