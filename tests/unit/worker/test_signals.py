"""What a worker makes of signals: it says so, and goes by itself only if no world counts on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.protocol.messages import Leaving, Notice
from liver_slurm.rundir.paths import RunDir
from liver_slurm.worker import fault_injection
from liver_slurm.worker.control_thread import ControlThread
from liver_slurm.worker.directives import Directives, Leave


class Port:
    """A worker, as its control thread sees it."""

    name = "standby-7-0"

    def __init__(self, engaged: bool) -> None:
        self._engaged = engaged
        self.was_noticed = False

    def engaged(self) -> bool:
        return self._engaged

    def noticed(self) -> None:
        self.was_noticed = True


class Channel:
    """Takes what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


class Worker:
    """A control thread that is given signals."""

    def __init__(self, engaged: bool) -> None:
        read, self._write = os.pipe()
        os.set_blocking(read, False)
        self.port, self.directives, self.channel = Port(engaged), Directives(), Channel()
        port: Any = self.port
        self._control = ControlThread(RunDir(Path("/nowhere")), port, self.directives, read, 1.0, 600.0)

    def get(self, *numbers: signal.Signals) -> None:
        channel: Any = self.channel
        os.write(self._write, bytes(numbers))
        self._control._read_signals(channel)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_standby_that_no_world_counts_on_goes_by_itself(number: signal.Signals) -> None:
    worker = Worker(engaged=False)
    worker.get(number)
    notice, leaving = worker.channel.sent
    assert isinstance(notice, Notice)
    assert isinstance(leaving, Leaving)
    assert (notice.reason, notice.deadline, leaving.reason) == (number.name, None, number.name)
    assert worker.directives.idle() == Leave(number.name)


def test_a_member_waits_for_the_coordinators_word() -> None:
    worker = Worker(engaged=True)
    worker.get(signal.SIGCONT, signal.SIGTERM)
    (notice,) = worker.channel.sent
    assert (notice.reason, notice.suspended, notice.withdrawn) == ("SIGTERM", False, False)
    assert worker.port.was_noticed


@pytest.mark.parametrize("engaged", [True, False])
def test_a_suspension_is_no_good_bye(engaged: bool) -> None:
    worker = Worker(engaged)
    worker.get(signal.SIGTSTP)
    (stop,) = worker.channel.sent
    assert (stop.suspended, stop.withdrawn) == (True, False)
    assert stop.deadline == stop.time + 2.0
    worker.get(signal.SIGCONT)
    worker.get(signal.SIGCONT)
    assert [message.withdrawn for message in worker.channel.sent] == [False, True]
    assert not worker.port.was_noticed


def test_signals_can_be_lost_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_injection, "_fault", fault_injection._parse("ignore@notice:standby-*"))
    worker = Worker(engaged=True)
    worker.get(signal.SIGTERM)
    assert worker.channel.sent == []


STARTING = """
import os, signal, time
from liver_slurm.worker.signals import signal_pipe, started, while_starting
pipe = signal_pipe()
while_starting(lambda name: os._exit(3 if name == "SIGTERM" else 4))
if {ready}:
    started()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.01)
os._exit(5 if os.read(pipe, 8)[0] == signal.SIGTERM else 6)
"""


@pytest.mark.parametrize(("ready", "code"), [(False, 3), (True, 5)])
def test_a_standby_that_is_taken_while_it_starts_leaves_at_once(ready: bool, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", STARTING.format(ready=ready)], check=False, timeout=60)
    assert done.returncode == code, "a worker that has started reads it from the pipe"
