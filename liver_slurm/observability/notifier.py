"""Telling people outside what becomes of the run: a command, a webhook, each in a process that is ended in time.

A thread of its own does it, so that neither training nor the coordinator's loop ever waits. What cannot be told is
counted, and is said in the coordinator's log and in the event log.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liver_slurm.base.errors import first_line, traceback_of
from liver_slurm.config.outside import NotifySection
from liver_slurm.observability.life import Life
from liver_slurm.rundir.events import Event, NotificationFailed

log = logging.getLogger(__name__)

WAITING = 100
"""Messages that may wait to be told; more than that are not told."""
LONGEST = 200
"""Characters of an error that are said."""


@dataclass(frozen=True)
class RunName:
    """Whose messages they are."""

    name: str
    """``job.name``."""
    run_dir: Path
    job_id: str
    """Empty: plain processes."""


class Notifier:
    """Tells messages one after the other, in a thread that is there while there are any."""

    def __init__(
        self, config: NotifySection, run: RunName, life: Life, say: Callable[[NotificationFailed], object]
    ) -> None:
        """``say``: writes an event down; it is called in another thread."""
        self._config, self._run, self._life, self._say = config, run, life, say
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._tell_all, name="notify", daemon=True)
        self._started = False
        self._child: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self.sent = 0
        """How often a command or webhook has taken a message."""
        self.failed = 0
        """How often one has not."""
        self._last_error = ""

    def hear(self, event: Event) -> None:
        """Take an event in, and have it told if it is one of those that are; returns at once."""
        message = self._life.hear(event)
        if message is None or message.event not in self._config.events:
            return
        if not self._config.command and self._config.webhook is None:
            return
        run = self._run
        document = message.document(run.run_dir.name, run.name, run.job_id, str(run.run_dir))
        try:
            self._waiting.put_nowait(document)
        except queue.Full:
            self._not_told("queue", message.event, f"{WAITING} messages wait already")
            return
        if not self._started:
            self._started = True
            self._thread.start()

    def close(self) -> None:
        """Wait for what is being told, for twice the time-out at most, and give up what is left."""
        if not self._started:
            return
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            self._closing.set()
        self._thread.join(timeout=2 * self._config.timeout + 1.0)
        self._closing.set()
        if (child := self._child) is not None:
            _end(child)
        self._thread.join(timeout=1.0)
        if left := self._waiting.qsize():
            log.warning("%d messages were not told any more", left)

    def _tell_all(self) -> None:
        while not self._closing.is_set() and (document := self._waiting.get()) is not None:
            if self._config.command:
                self._try("command", document, self._config.command, json.dumps(document))
            if self._config.webhook is not None and not self._closing.is_set():
                posted = {"url": self._config.webhook, "timeout": self._config.timeout, "document": document}
                self._try("webhook", document, (sys.executable, "-m", "liver_slurm.base.post"), json.dumps(posted))

    def _try(self, channel: str, document: dict[str, Any], command: Sequence[str], given: str) -> None:
        """Tell one message; whatever goes wrong with it, the next one is told."""
        try:
            self._tell(channel, document, command, given)
        except Exception as error:  # a thread's edge: it is logged and counted
            log.warning("notify.%s: %s", channel, first_line(error), exc_info=traceback_of(error))
            self._not_told(channel, document["event"], f"it cannot be told: {type(error).__name__}")

    def _tell(self, channel: str, document: dict[str, Any], command: Sequence[str], given: str) -> None:
        # No variable can have a NUL in it.
        told = {f"LIVER_{name.upper()}": str(document[name]).replace("\0", " ") for name in ("event", "run", "text")}
        error = self._run_command(command, given, told)
        if channel == "webhook":
            error = error.removeprefix("exit code 1: ")  # our own program's, which says what was wrong
        if error:
            self._not_told(channel, document["event"], error)
        else:
            self.sent += 1
            self._last_error = ""

    def _run_command(self, command: Sequence[str], given: str, told: Mapping[str, str]) -> str:
        """Run a command in a process group of its own; returns why it failed, empty: it did not."""
        try:
            with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stderr:
                stdin.write(given.encode())
                stdin.seek(0)
                self._child = subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    env={**os.environ, **told},
                    start_new_session=True,
                )
                try:
                    code = self._child.wait(timeout=self._config.timeout)
                except subprocess.TimeoutExpired:
                    _end(self._child)
                    return f"no end after {self._config.timeout:g} s"
                stderr.seek(0)
                return "" if code == 0 else f"exit code {code}: {_last_line(stderr.read())}".rstrip(": ")
        except OSError as error:  # there is no such command, or no room for what it is given
            return f"it cannot be run: {error.strerror}"
        finally:
            self._child = None

    def _not_told(self, channel: str, event: str, error: str) -> None:
        """Count a failure; the event log has it when the error is another than the last one."""
        self.failed += 1
        log.warning("notify.%s: %s was not told: %s (%d failures)", channel, event, error, self.failed)
        if error != self._last_error:
            self._last_error = error
            self._say(NotificationFailed(channel=channel, about=event, error=error, failures=self.failed))


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a command that goes on, and what it has started."""
    if child.poll() is None:  # it is the leader of its group, whose number is nobody else's as long as it is there
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _last_line(text: bytes) -> str:
    """Take the last line that a command wrote, which tends to say what was wrong, without URLs: they may be secret."""
    lines = text.decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    words = ["(a URL)" if "://" in word else word for word in last.split()]
    return " ".join(words)[:LONGEST]
