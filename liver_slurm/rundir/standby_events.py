"""The events of standby jobs, of the capacity for more of them, and of workers that come. Pure."""

from __future__ import annotations

from liver_slurm.rundir.event_base import EventBase


class StandbyLaunch(EventBase, frozen=True, kw_only=True):
    """Standby jobs are about to be started."""

    count: int
    unit: int
    partition: str
    reason: str


class LaunchRefused(EventBase, frozen=True, kw_only=True):
    """The scheduler has refused standby jobs."""

    reason: str


class StandbyFailed(EventBase, frozen=True, kw_only=True):
    """A standby job has ended by itself before a worker of it was ready; its log says why."""

    job_id: str
    partition: str
    in_a_row: int
    """How often some have, in this partition, since one came to have a worker; those that fail together count once."""
    alone_s: float
    """Seconds for which no other is started there."""


class StandbyRelease(EventBase, frozen=True, kw_only=True):
    """A standby job of no use is ended."""

    job_id: str
    reason: str


class StandbyJobChanged(EventBase, frozen=True, kw_only=True):
    """A standby job is in another state, or on other nodes, than at the last look at the scheduler."""

    job_id: str
    state: str
    """``pending``, ``running``, ``suspended``, ``ending``, or ``gone``."""
    partition: str = ""
    workers: int = 0
    """Devices that it holds while it runs."""
    nodes: tuple[str, ...] = ()


class CapacityChanged(EventBase, frozen=True, kw_only=True):
    """The capacity for further standby jobs is another one than at the last look at the scheduler."""

    workers: dict[str, int]
    """Workers of standby jobs that would start at once, by partition."""


class WorkerRegistered(EventBase, frozen=True, kw_only=True):
    """A worker's process has started and has told this coordinator so; each coordinator says it again."""

    worker: str
    host: str = ""
    role: str = ""
    job_id: str = ""
    device: str = ""
    warm: bool = False
    """It can join a world at once."""


class StandbyReady(EventBase, frozen=True, kw_only=True):
    """A worker of a standby job is warm: it can join a target world at once."""

    worker: str
    host: str | None = None
    device: str = ""
    job_id: str | None = None
