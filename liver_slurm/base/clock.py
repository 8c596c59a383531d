"""Clocks: the machine's own, and one that a test or a simulator moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Tells the time, and waits."""

    def now(self) -> float:
        """Return the seconds since the epoch; it never goes backwards."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


TOLERATED = 1.0
"""Seconds by which the machine's clock may be ahead of :class:`SystemClock`, or behind it."""


class SystemClock:
    """The machine's clock, which others' deadlines are told by, but for going backwards.

    When that is set ahead, or the machine has slept, this one follows at once; the coordinator takes such a leap for a
    stall, so that nobody is silent for it. When it is set back, this one goes at half its pace until they agree.
    """

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        """Args:
        wall: the machine's clock, seconds since the epoch.
        steady: seconds that go by evenly.
        """
        self._wall, self._steady = wall, steady
        self._told, self._at = wall(), steady()
        self._lock = threading.Lock()

    def now(self) -> float:
        """Return the seconds since the epoch."""
        with self._lock:
            at = self._steady()
            passed, self._at = at - self._at, at
            ahead = self._told + passed - self._wall()
            self._told += passed / 2 if ahead > TOLERATED else passed
            if ahead < -TOLERATED:
                self._told = self._wall()
            return self._told

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        time.sleep(seconds)


class FakeClock:
    """A clock that stands still until it is moved; sleeping moves it."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def now(self) -> float:
        """Return the seconds, as they were set."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Move the clock, at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move the clock."""
        self._now += seconds
