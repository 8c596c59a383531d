"""What the coordinator needs from whoever starts standby workers: Slurm through submitit, or plain processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

DEFAULT_GRACE = 30.0
"""Seconds between a signal and the end where nobody says otherwise: Slurm's own default of KillWait."""

NoticeKind = Literal["preemption", "time limit", "suspension", "node", "reservation", "ending"]


@dataclass(frozen=True)
class JobNotice:
    """The scheduler's own word that a standby job will go away."""

    kind: NoticeKind
    reason: str
    """For people, e.g. ``node n3 is drained``."""
    deadline: float | None = None
    """When its processes will be killed at the earliest, seconds since the epoch; None: nobody will kill them."""


@dataclass(frozen=True)
class StandbyJob:
    """One reclaimable unit that runs, or will run, standby workers."""

    job_id: str
    state: Literal["pending", "running", "suspended", "ending"]
    nodes: tuple[str, ...] = ()
    notice: JobNotice | None = None
    """None while nobody wants it back."""
    grace: float = DEFAULT_GRACE
    """Seconds that its workers have at least after a signal that does not say why it came."""
    partition: str = ""
    unit: int = 0
    """Which of the job file's units it is, counted from 0."""


@dataclass(frozen=True)
class Room:
    """How many further standby jobs of one unit would start at once in one partition."""

    unit: int
    partition: str
    jobs: int


@dataclass(frozen=True)
class Supply:
    """One look at the reclaimable capacity."""

    time: float
    """When the look was taken, seconds since the epoch."""
    jobs: tuple[StandbyJob, ...]
    """Our standby jobs that are not over."""
    room: tuple[Room, ...] = ()
    """For each unit and partition, in the job file's order; units, and jobs that wait, compete for the same nodes."""
    blind: str | None = None
    """Why the scheduler could not be asked; then the rest is the last known state, and nothing is concluded from it."""
    queries: int | None = None
    """What Slurm was asked in the last minute; None where nobody counts."""


class StandbySource(Protocol):
    """Starts and ends standby jobs; methods raise :class:`liver_slurm.errors.ClusterError` when refused."""

    def observe(self) -> Supply:
        """Look at capacity and at our own jobs, with a bounded number of queries."""

    def launch(self, count: int, unit: int, partition: str) -> list[str]:
        """Start ``count`` standby jobs of a unit in a partition; returns their ids."""

    def release(self, job_id: str) -> None:
        """End one standby job."""

    def close(self) -> None:
        """End every standby job that this source started."""
