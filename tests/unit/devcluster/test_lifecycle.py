"""What a daemon that did not come up is quoted with, from real logs; and that no daemon is left, whatever fails."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from liver_slurm.base.errors import ClusterError
from liver_slurm.devcluster import lifecycle, processes
from liver_slurm.devcluster.lifecycle import fatal_lines
from liver_slurm.devcluster.spec import ClusterDir, ClusterSpec

IN_26_05 = """\
[2026-11-27T00:20:52.508] error: Configured MailProg is invalid
[2026-11-27T00:20:52.522] slurmctld version 26.05.5 started on cluster liver
[2026-11-27T00:20:52.522] cred/munge: init: Munge credential signature plugin loaded
[2026-11-27T00:20:52.523] error: cannot create select context for select/nonsense
[2026-11-27T00:20:52.523] fatal: failed to initialize node selection plugin
"""
IN_24_11 = """\
[2026-11-27T00:20:51.951] error: Configured MailProg is invalid
[2026-11-27T00:20:51.991] slurmctld version 24.11.5 started on cluster liver(0)
[2026-11-27T00:20:52.009] select/linear: init: Linear node selection plugin loaded with argument 4
[2026-11-27T00:20:52.009] fatal: Can't find plugin for select/nonsense
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            IN_26_05,
            [" | ".join(IN_26_05.splitlines()[-2:])],
        ),
        (IN_24_11, [IN_24_11.splitlines()[-1]]),
        ("slurmd: fatal: no\n", ["slurmd: fatal: no"]),
        ("slurmd: error: by itself\n", []),
    ],
)
def test_a_fatal_line_comes_with_the_error_before_it(log: str, said: list[str]) -> None:
    assert fatal_lines(log) == said


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a cluster may be; not below pytest's folder, as such a path is short."""
    parent = Path(tempfile.mkdtemp(prefix="liver-cluster-"))
    yield parent / "c"
    shutil.rmtree(parent)


@pytest.fixture
def daemon(path: Path) -> Iterator[Callable[[], int]]:
    """``daemon()`` starts a process that looks like the slurmctld of the cluster in ``path``: its id."""
    program, started = path.parent / "slurmctld", []
    shutil.copy(shutil.which("sleep") or "", program)
    conf = ClusterDir(path).slurm_conf

    def start() -> int:
        conf.parent.mkdir(parents=True, exist_ok=True)
        conf.touch()
        started.append(subprocess.Popen([program, "1000"], env={"SLURM_CONF": str(conf)}))
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.wait()


def answer(monkeypatch: pytest.MonkeyPatch, **answers: subprocess.CompletedProcess[str] | Exception) -> None:
    """Let Slurm's commands answer this."""

    def run(argv: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        found = answers[argv[0]]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(
    "answers",
    [
        {"squeue": subprocess.CompletedProcess([], 1, "", "squeue: error: Invalid user id\n")},
        {"squeue": subprocess.TimeoutExpired("squeue", 10)},
        {"squeue": FileNotFoundError("squeue")},
        {"squeue": subprocess.CompletedProcess([], 0, "7\n", ""), "scancel": subprocess.TimeoutExpired("scancel", 10)},
        {
            "squeue": subprocess.CompletedProcess([], 0, "7\n", ""),
            "scancel": subprocess.CompletedProcess([], 1, "", "scancel: error: Kill job error on job id 7\n"),
        },
    ],
)
def test_down_ends_daemons_whatever_slurm_answers(
    path: Path, daemon: Callable[[], int], monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any]
) -> None:
    pid = daemon()
    answer(monkeypatch, **answers)
    monkeypatch.setattr(lifecycle, "_KILL_WAIT", 0.5)
    lifecycle.down(path)
    assert not processes.is_alive(psutil.Process(pid))
    assert not path.exists()


def failing_start(monkeypatch: pytest.MonkeyPatch, daemon: Callable[[], int], error: BaseException) -> None:
    """Let ``up`` fail when a daemon has been started."""

    def start(*_: Any) -> None:
        daemon()
        raise error

    monkeypatch.setattr(lifecycle, "find_programs", lambda _accounting: {})
    monkeypatch.setattr(lifecycle, "_start", start)


@pytest.mark.parametrize("error", [ClusterError("no"), KeyboardInterrupt()])
def test_up_that_fails_ends_also_what_came_later(
    path: Path, daemon: Callable[[], int], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """One may be forked after the others were found."""
    end, later = processes.end, iter([daemon, daemon])

    def end_and_fork(found: list[psutil.Process], patience: float) -> list[psutil.Process]:
        survivors = end(found, patience)
        next(later, lambda: 0)()
        return survivors

    monkeypatch.setattr(processes, "end", end_and_fork)
    failing_start(monkeypatch, daemon, error)
    with pytest.raises(type(error)):
        lifecycle.up(ClusterSpec(directory=path, nodes=1))
    assert processes.cluster_processes(ClusterDir(path).slurm_conf) == []


@pytest.mark.parametrize("error", [ClusterError("node n1 did not start"), KeyboardInterrupt(), None])
def test_daemons_that_cannot_be_ended_are_named_and_can_be_found(
    path: Path, daemon: Callable[[], int], monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    monkeypatch.setattr(processes, "END", 0.2)
    monkeypatch.setattr(processes, "end", lambda found, patience: found)
    if error is None:
        daemon()
        answer(monkeypatch, squeue=subprocess.CompletedProcess([], 0, "", ""))
        with pytest.raises(ClusterError) as said:
            lifecycle.down(path)
    else:
        failing_start(monkeypatch, daemon, error)
        with pytest.raises(type(error)) as said:
            lifecycle.up(ClusterSpec(directory=path, nodes=1))
        assert str(error) in str(said.value)
    (left,) = processes.cluster_processes(ClusterDir(path).slurm_conf)
    assert f"processes [{left.pid}] of {path} could not be ended" in str(said.value)
    assert ClusterDir(path).slurm_conf.exists(), "they are found by it"


def test_daemons_write_their_logs_in_our_time_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    found = lifecycle._environment(ClusterDir(tmp_path))
    assert (found["TZ"], "SLURM_JOB_ID" in found) == ("Asia/Tokyo", False)
