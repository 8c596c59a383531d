"""What the coordinator needs from whoever starts standby workers: Slurm through submitit, or plain processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class StandbyJob:
    """One reclaimable unit that runs, or will run, standby workers."""

    job_id: str
    state: Literal["pending", "running", "ending"]
    nodes: tuple[str, ...] = ()
    preempt_at: float | None = None
    """Seconds since the epoch at which the scheduler said it takes the unit back; None while nobody wants it."""


@dataclass(frozen=True)
class Supply:
    """One look at the reclaimable capacity."""

    time: float
    """When the look was taken, seconds since the epoch."""
    idle_units: int
    """How many further standby jobs would start at once."""
    jobs: tuple[StandbyJob, ...]
    """Our standby jobs that are not over."""
    blind: str | None = None
    """Why the scheduler could not be asked; then the rest is the last known state, and nothing is concluded from it."""


class StandbySource(Protocol):
    """Starts and ends standby jobs; methods raise :class:`liver_slurm.errors.ClusterError` when refused."""

    def observe(self) -> Supply:
        """Look at capacity and at our own jobs, with a bounded number of queries."""

    def launch(self, count: int) -> list[str]:
        """Start ``count`` standby jobs; returns their ids."""

    def release(self, job_id: str) -> None:
        """End one standby job."""

    def close(self) -> None:
        """End every standby job that this source started."""
