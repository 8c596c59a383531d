"""A terminal of any size with a command in it, and its screen as a person would see it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import pyte
from interrupting import default_signals

COLOUR = re.compile(rb"\x1b\[[0-9;]*(?:3[0-7]|4[0-7]|9[0-7]|[34]8)(?:;[0-9;]*)?m")
"""A sequence that sets a colour."""


def _in_the_foreground() -> None:
    """So that Ctrl-C is a signal, and one that is heeded."""
    default_signals()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """Runs a command in a pseudo-terminal while the ``with`` block lasts."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], columns: int = 80, lines: int = 24) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.output = b""
        self._ours, theirs = pty.openpty()
        self._set_size(columns, lines)
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=dict(env),
            start_new_session=True,
            preexec_fn=_in_the_foreground,
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    @property
    def text(self) -> str:
        """What is on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size."""
        self._set_size(columns, lines)
        self.screen.resize(lines, columns)

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._ours, keys.encode())

    def until(self, holds: Callable[[str], bool], seconds: float = 120.0) -> str:
        """Wait until the screen's text is as wanted; returns it."""
        deadline = time.monotonic() + seconds
        while not holds(self.text):
            assert time.monotonic() < deadline, f"after {seconds} s the screen is still:\n{self.text}"
            assert self._read(0.1) or holds(self.text), f"it ended, and the screen is:\n{self.text}"
        return self.text

    def wait(self, seconds: float = 120.0) -> int:
        """Wait until the command ends and all that it wrote is read; returns its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(0.1):
            assert time.monotonic() < deadline, f"it goes on:\n{self.text}"
        return self.process.wait(timeout=max(1.0, deadline - time.monotonic()))

    def _read(self, seconds: float) -> bool:
        """Take in what was written; False: it was all."""
        ready, _, _ = select.select([self._ours], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self._ours, 1 << 16)
        except OSError:  # how Linux says that nobody has the other end open
            return False
        self.output += data
        self._stream.feed(data)
        return bool(data)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
