"""When a checkpoint is due that no step number asks for: by the clock, or again after one that failed. Pure.

The time between two is Young's: the square root of twice a checkpoint's cost times the mean time between failures. Its
cost is the time that training stands still for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SHORTEST, LONGEST = 300.0, 3600.0
"""Seconds between two checkpoints by the clock."""
WORKER_MTBF = 50_000 * 3600.0
"""Seconds between two failures of one worker. Llama 3's 405B run had one in 3.1 hours on 16,384 GPUs (arXiv:2407.21783,
section 3.3.4), which is one in 50,000 hours of a GPU."""
BUSY = 0.1
"""Share of the time that writing may take beside training."""
FIRST_RETRY, LAST_RETRY = 60.0, 900.0
"""Seconds after a checkpoint that failed until the next attempt; they double."""


def interval(stall_seconds: float, write_seconds: float, workers: int) -> float:
    """Return the seconds between two checkpoints.

    Args:
        stall_seconds: how long training stood still for the last one.
        write_seconds: how long it took to be written.
    """
    young = math.sqrt(2 * stall_seconds * WORKER_MTBF / workers)
    return max(min(max(young, SHORTEST), LONGEST), write_seconds / BUSY)


@dataclass
class Schedule:
    """When rank 0 asks for a checkpoint; all times are of one monotonic clock.

    ``automatic``: by the clock as well, and not only after one that failed.
    """

    automatic: bool
    workers: int
    saved: float
    """When the last one was begun, or training in this world."""
    stall_seconds: float = 0.0
    write_seconds: float = 0.0
    failures: int = 0
    """In a row."""
    failed: float = 0.0

    def due(self, now: float) -> bool:
        """Return whether a checkpoint is to be written now."""
        if self.failures:
            return now >= self.failed + min(FIRST_RETRY * 2.0 ** (self.failures - 1), LAST_RETRY)
        wait = interval(self.stall_seconds, self.write_seconds, self.workers)
        return self.automatic and now >= self.saved + wait

    def begun(self, now: float) -> None:
        """Note that one is begun."""
        self.saved = now

    def ended(self, now: float, error: str, stall_seconds: float, write_seconds: float) -> None:
        """Note how one has ended."""
        if error:
            self.failures, self.failed = self.failures + 1, now
        else:
            self.failures = 0
            self.stall_seconds, self.write_seconds = stall_seconds, write_seconds
