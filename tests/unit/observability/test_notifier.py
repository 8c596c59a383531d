"""Telling people outside: nobody waits for it, what takes too long is ended, and failures are counted and said."""

from __future__ import annotations

import errno
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from event_samples import committed
from web import WebServer

from liver_slurm.config.outside import NotifySection
from liver_slurm.observability import notifier as notifier_module
from liver_slurm.observability.life import Life
from liver_slurm.observability.notifier import Notifier, RunName
from liver_slurm.rundir.events import NotificationFailed, RunEnded, WorldLive

FIRST = WorldLive(generation=0, layout="tp1pp1dp2", members=("live-0", "live-1"))
END = RunEnded(outcome="failed", reason="no worker is left", step=9)
KEEP = """\
import json, os, sys
with open(sys.argv[1], "a") as stream:
    named = {name: os.environ[name] for name in ("LIVER_EVENT", "LIVER_RUN", "LIVER_TEXT")}
    stream.write(json.dumps({"given": json.load(sys.stdin), "named": named}) + "\\n")
"""


class Teller:
    """A notifier, and what it has said of its failures."""

    def __init__(self, **keys: Any) -> None:
        self.said: list[NotificationFailed] = []
        config = NotifySection(**{"timeout": 60.0, **keys})
        self.notifier = Notifier(config, RunName("gpt", Path("/runs/gpt-1"), "7"), Life(), self.said.append)

    def hear(self, *events: Any) -> None:
        for event in events:
            self.notifier.hear(event)

    @property
    def counts(self) -> tuple[int, int]:
        return self.notifier.sent, self.notifier.failed


def python(text: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text, *arguments)


def eventually(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_command_is_told_in_order(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    teller = Teller(command=python(KEEP, str(kept)))
    teller.hear(FIRST, committed(), END)
    teller.notifier.close()
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["given"]["event"] for line in lines] == ["started", "grew", "failed"]
    assert lines[2]["named"] == {
        "LIVER_EVENT": "failed",
        "LIVER_RUN": "gpt-1",
        "LIVER_TEXT": "gpt-1 (job 7) failed at step 9: no worker is left",
    }
    assert teller.counts == (3, 0)


def test_only_what_was_asked_for_is_told(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    teller = Teller(command=python(KEEP, str(kept)), events=("failed",))
    teller.hear(FIRST, committed(), END)
    teller.notifier.close()
    assert kept.read_text().count("\n") == 1


def test_a_webhook_is_told() -> None:
    with WebServer() as server:
        teller = Teller(webhook=server.url)
        teller.hear(FIRST)
        teller.notifier.close()
        assert [document["text"] for document in server.posted] == ["gpt-1 (job 7) trains as tp1pp1dp2"]
    assert (teller.counts, teller.said) == ((1, 0), [])


def test_nobody_is_told_by_default() -> None:
    teller = Teller()
    teller.hear(FIRST, END)
    teller.notifier.close()
    assert not teller.notifier._thread.is_alive()
    assert teller.counts == (0, 0)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (python("import sys; sys.exit('first\\nhttps://hooks/SECRET says no\\n')"), "exit code 1: (a URL) says no"),
        (python("import sys; sys.exit(3)"), "exit code 3"),
        (("/nonexistent/command",), "it cannot be run: No such file or directory"),
    ],
)
def test_a_failure_is_counted_and_said_once(command: tuple[str, ...], error: str) -> None:
    teller = Teller(command=command)
    teller.hear(FIRST, committed())
    teller.notifier.close()
    assert teller.counts == (0, 2)
    assert teller.said == [NotificationFailed(channel="command", about="started", error=error, failures=1)]


def no_files() -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk() -> Any:
    return open("/dev/full", "w+b")


@pytest.mark.parametrize("temporary", [no_files, full_disk])
def test_without_room_in_tmp_it_is_said_and_the_next_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Callable[[], Any]
) -> None:
    kept = tmp_path / "kept"
    teller = Teller(command=python(KEEP, str(kept)))
    with monkeypatch.context() as full:
        full.setattr(notifier_module.tempfile, "TemporaryFile", temporary)
        teller.hear(FIRST)
        eventually(lambda: bool(teller.said))
    assert teller.said[0].error == "it cannot be run: No space left on device"
    teller.hear(END)
    teller.notifier.close()
    assert teller.counts == (1, 1)


def test_a_reason_with_a_nul_is_told(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    teller = Teller(command=python(KEEP, str(kept)))
    teller.hear(FIRST, RunEnded(outcome="failed", reason="a\0b", step=9))
    teller.notifier.close()
    named = [json.loads(line)["named"] for line in kept.read_text().splitlines()]
    assert named[1]["LIVER_TEXT"].endswith("failed at step 9: a b")
    assert teller.counts == (2, 0)


def test_one_message_that_cannot_be_told_stops_no_other(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    teller = Teller(command=python(KEEP, str(kept)))
    teller.hear(FIRST, committed(reason="\ud800"), END)  # half of a character, which no variable can have
    teller.notifier.close()
    assert kept.read_text().count("\n") == 2
    assert teller.counts == (2, 1)
    assert teller.said[0].error == "it cannot be told: UnicodeEncodeError"


def test_a_webhook_that_refuses_is_said_without_its_url() -> None:
    with WebServer(403) as server:
        teller = Teller(webhook=server.url)
        teller.hear(FIRST)
        teller.notifier.close()
    assert teller.said == [NotificationFailed(channel="webhook", about="started", error="HTTP status 403", failures=1)]


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    script = f"sleep 600 & echo $! > {child}; wait"
    teller = Teller(command=("/bin/sh", "-c", script), timeout=2.0)
    began = time.monotonic()
    teller.hear(FIRST)
    assert time.monotonic() - began < 1.0  # whoever speaks does not wait
    eventually(lambda: bool(teller.said))
    assert teller.said[0].error == "no end after 2 s"
    pid = int(child.read_text())
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    teller.notifier.close()


def test_a_webhook_that_does_not_answer_is_given_up() -> None:
    with WebServer(0) as server:
        teller = Teller(webhook=server.url, timeout=2.0)
        teller.hear(FIRST)
        eventually(lambda: bool(teller.said))
        teller.notifier.close()
    assert teller.counts == (0, 1)


def test_the_end_does_not_wait_for_all_that_is_left() -> None:
    teller = Teller(command=("/bin/sleep", "600"), timeout=0.5)
    teller.hear(FIRST, *[committed()] * 50)
    began = time.monotonic()
    teller.notifier.close()
    assert time.monotonic() - began < 20.0
    assert not teller.notifier._thread.is_alive()


def test_too_many_messages_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier_module, "WAITING", 2)
    teller = Teller(command=("/bin/sleep", "600"), timeout=1.0)
    teller.hear(FIRST, *[committed()] * 9)
    assert teller.counts[1] >= 6
    assert teller.said[0].channel == "queue"
    teller.notifier.close()
