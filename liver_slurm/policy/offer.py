"""An offer: standby jobs that a policy has decided to take or to leave, and when to look at what came of it."""

from __future__ import annotations

from dataclasses import dataclass

WINDOWS = (300.0, 1800.0, 7200.0)
"""Seconds after a decision at which the event log is told what it has gained."""


@dataclass(frozen=True)
class Offer:
    """A decision on an offer, for as long as something of it is still to come. Times are seconds since the epoch."""

    number: int
    """Of the run's decisions that state their chance, counted from 0."""
    time: float
    step: int
    """Steps completed then."""
    step_seconds: float
    """Of a step in the world of then."""
    jobs: tuple[str, ...]
    partitions: tuple[str, ...]
    """Of the jobs."""
    until: float = 0.0
    """When standby jobs may be started there again; 0.0: the jobs were taken."""
    told: int = 0
    """Windows of :data:`WINDOWS` that were told of."""

    @property
    def next_window(self) -> float:
        """When the next window ends; infinity: all have."""
        return self.time + WINDOWS[self.told] if self.told < len(WINDOWS) else float("inf")

    def over(self, now: float) -> bool:
        """Return whether nothing of it is still to come."""
        return self.told >= len(WINDOWS) and self.until <= now
