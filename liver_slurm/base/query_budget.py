"""A budget of questions to slurmctld: what was asked, and when the next capacity snapshot is due."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

MINUTE = 60.0


class QueryBudget:
    """Counts requests for information, as slurmctld counts them; orders (submit, cancel, signal, update) are none.

    A look at the supply takes several at once, so the budget is kept by the gap that follows: a look that cost ``n``
    is followed by ``n`` times the mean gap. Safe to use from several threads.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``per_minute``: how many may be asked a minute; ``clock``: seconds."""
        self.per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: deque[float] = deque()
        self._next = clock()

    def spend(self, queries: int = 1) -> None:
        """Note that so many were asked."""
        with self._lock:
            now = self._clock()
            self._asked.extend([now] * queries)
            self._next = max(self._next, now) + queries * MINUTE / self.per_minute

    def wait(self) -> float:
        """Seconds until another look keeps the budget; 0 or less: it does now."""
        return self._next - self._clock()

    def last_minute(self) -> int:
        """How many were asked in the last minute."""
        with self._lock:
            oldest = self._clock() - MINUTE
            while self._asked and self._asked[0] <= oldest:
                self._asked.popleft()
            return len(self._asked)
