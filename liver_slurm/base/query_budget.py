"""A budget of questions to slurmctld: what was asked, and when the next capacity snapshot is due."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

MINUTE = 60.0


class QueryBudget:
    """Counts requests for information, as slurmctld counts them; orders (submit, cancel, signal, update) are none.

    A look at the capacity takes several at once. They are spread by the gap that follows: a look that cost ``n`` is
    followed by ``n`` times the mean gap. That alone would keep the mean, but for one look in any stretch of time; who
    also waits until there is :meth:`room` never asks more in any minute. Safe to use from several threads.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``per_minute``: how many may be asked a minute; ``clock``: seconds."""
        self.per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: deque[float] = deque()
        self._next = clock()
        self.total = 0
        """Queries that were asked so far."""

    def spend(self, queries: int = 1) -> None:
        """Note that so many were asked."""
        with self._lock:
            now = self._clock()
            self._asked.extend([now] * queries)
            self.total += queries
            self._next = max(self._next, now) + queries * MINUTE / self.per_minute

    def wait(self) -> float:
        """Return the seconds until another look keeps the budget; 0 or less: it does now."""
        return self._next - self._clock()

    def room(self, queries: int) -> float:
        """Return the seconds until so many more are within the budget of the last minute; 0: they are.

        More than are allowed in a minute are to be asked when none was in the last one.
        """
        left = self.last_minute() - max(0, int(self.per_minute) - queries)
        with self._lock:
            return max(0.0, self._asked[left - 1] + MINUTE - self._clock()) if 0 < left <= len(self._asked) else 0.0

    def last_minute(self) -> int:
        """Return how many were asked in the last minute."""
        with self._lock:
            oldest = self._clock() - MINUTE
            while self._asked and self._asked[0] <= oldest:
                self._asked.popleft()
            return len(self._asked)
