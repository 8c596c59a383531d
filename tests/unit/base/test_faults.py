"""Faults at a real process, from outside: proven first, and undone."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from coordinator_lab import until

from liver_slurm.base.faults import NotTheProcess, Victim, listens, started

SCRIPT = """
import socket, sys
port = int(sys.argv[1])
one = socket.create_connection(("127.0.0.1", port))
other = socket.create_server(("127.0.0.1", 0))
print(other.getsockname()[1], flush=True)
print("cut" if one.recv(1) == b"" else "data", flush=True)
for line in sys.stdin:
    try:
        with open(line.strip(), "w") as file:
            file.write("a" * 10)
        print("written", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""


class Process:
    """A process that is connected, listens, and writes the files that it is told to."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        command = [sys.executable, "-c", SCRIPT, str(self._server.getsockname()[1])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid, self.peer = self.process.pid, self._server.accept()[0]
        self.port = int(self.said())

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def write(self, path: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        return self.said()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.peer.close()
        self._server.close()


@pytest.fixture
def process() -> Iterator[Process]:
    one = Process()
    yield one
    one.close()


def test_a_process_is_proven_by_its_beginning_or_its_port(process: Process) -> None:
    began = started(process.pid)
    for proof in ({"began": began}, {"port": process.port}):
        Victim(process.pid, **proof).close()
    with pytest.raises(NotTheProcess, match="began at another time"):
        Victim(process.pid, began=began - 1)
    with pytest.raises(NotTheProcess, match="does not listen"):
        Victim(os.getpid(), port=process.port)
    assert not listens(process.pid, process.peer.getpeername()[1])  # it is connected from there, and does not listen


def test_another_users_process_is_not_touched(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(NotTheProcess, match="another user's"):
        Victim(process.pid, started(process.pid))


def test_a_process_that_has_ended_is_not_struck(process: Process) -> None:
    began, victim = started(process.pid), Victim(process.pid)
    process.process.kill()
    process.process.wait()
    assert not victim.alive()
    with pytest.raises(NotTheProcess, match="has ended"):
        victim.send(signal.SIGKILL)
    with pytest.raises(NotTheProcess, match="there is no process"):
        Victim(process.pid, began)
    victim.close()


def test_its_connections_end_on_both_sides(process: Process) -> None:
    victim = Victim(process.pid)
    assert victim.cut() == 1
    assert process.said() == "cut"
    assert process.peer.recv(1) == b""
    assert listens(process.pid, process.port)  # what listens is no connection
    victim.close()


def test_its_disk_is_full_until_it_is_not(process: Process, tmp_path: os.PathLike[str]) -> None:
    victim, file = Victim(process.pid), os.fspath(tmp_path) + "/file"
    victim.cut()
    process.said()
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    restore = victim.limit_files()
    assert process.write(file) == "File too large"
    restore()
    assert process.write(file) == "written"
    assert resource.prlimit(process.pid, resource.RLIMIT_FSIZE) == before
    victim.close()


def test_it_is_stopped_and_goes_on(process: Process) -> None:
    victim, seen = Victim(process.pid), psutil.Process(process.pid)
    victim.send(signal.SIGSTOP)
    until(lambda: seen.status() == psutil.STATUS_STOPPED, "stopped")
    victim.send(signal.SIGCONT)
    until(lambda: seen.status() != psutil.STATUS_STOPPED, "it runs")
    victim.close()
