"""Clocks: the machine's own, and one that a test or a simulator moves."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time, and waits."""

    def now(self) -> float:
        """Seconds since the epoch; it never goes backwards."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's clock, as it was set when this was made: a correction later on must not make everybody silent."""

    def __init__(self) -> None:
        self._base = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._base + time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        time.sleep(seconds)


class FakeClock:
    """A clock that stands still until it is moved; sleeping moves it."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def now(self) -> float:
        """Seconds, as they were set."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Move the clock, at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move the clock."""
        self._now += seconds
