"""Time in a simulation: a clock that jumps from one event to the next. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Deed = Callable[[], None]


class EventQueue:
    """What is to happen, in order of time; what is to happen at one time does so in the order in which it was noted."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self._count = 0
        self._deeds: list[tuple[float, int, Deed]] = []

    def now(self) -> float:
        """Simulated seconds since the epoch."""
        return self._now

    def at(self, time: float, deed: Deed) -> None:
        """Have ``deed`` happen at ``time``; what is due already happens next."""
        self._count += 1
        heapq.heappush(self._deeds, (max(time, self._now), self._count, deed))

    def after(self, seconds: float, deed: Deed) -> None:
        """Have ``deed`` happen in ``seconds``."""
        self.at(self._now + seconds, deed)

    def run_until(self, end: float) -> None:
        """Let everything happen that is due before ``end``, and set the clock to it."""
        while self._deeds and self._deeds[0][0] < end:
            self._now, _, deed = heapq.heappop(self._deeds)
            deed()
        self._now = max(self._now, end)
