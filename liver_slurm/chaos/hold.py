"""A fault that is in force: the agent that did it, and how it is told to undo it."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from liver_slurm.chaos.agent import REFUSED, STRUCK, UNDONE

ANSWER = 30.0
"""Seconds that an agent has to strike; on another node, Slurm has to start it first."""


class Hold(Protocol):
    """A fault that was done."""

    outcome: str
    """What came of it: ``struck``, or ``refused: WHY``."""

    def over(self) -> str | None:
        """Return how it ended, once it is not in force any more; None: it is."""

    def release(self) -> None:
        """Begin to undo it."""

    def wait(self, deadline: float) -> str:
        """Wait until it is undone, until ``deadline`` of the monotonic clock; returns how it ended."""


class AgentHold:
    """:class:`Hold` of an agent, here or on another node."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], patience: float = ANSWER) -> None:
        """Start the agent and wait for its first word."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C is for us: we tell the agents, and each undoes what it did
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._text, self._ended = "", False
        deadline = time.monotonic() + patience
        while "\n" not in self._text and not self._ended and time.monotonic() < deadline:
            self._read(deadline - time.monotonic())
        self.outcome = self._first_word()

    def _first_word(self) -> str:
        first = self._text.partition("\n")[0]
        if first.startswith((STRUCK, REFUSED)):
            return first
        self.release()
        if not self._ended:
            return f"{REFUSED}: the agent does not answer"
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        return f"{REFUSED}: the agent failed: {lines[-1] if lines else 'it said nothing'}"

    def over(self) -> str | None:
        if not self._ended:
            self._read(0.0)
        if not self._ended:
            return None
        self._process.wait()  # what is left of it is only its exit code
        return self._last_word()

    def _last_word(self) -> str:
        if f"\n{UNDONE}" in self._text:
            return UNDONE
        return "ended" if self.outcome.startswith(STRUCK) else self.outcome

    def release(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self, deadline: float) -> str:
        while not self._ended and time.monotonic() < deadline:
            self._read(deadline - time.monotonic())
        return self.over() or "not undone in time"

    def _read(self, timeout: float) -> None:
        if not select.select([self._output], [], [], max(0.0, timeout))[0]:
            return
        data = os.read(self._output, 4096)
        self._text += data.decode(errors="replace")
        self._ended = not data
