"""What the coordinator needs from a scheduler, as protocols and plain records; adapters implement them.

Slurm's adapter is :mod:`liver_slurm.scheduler.slurm`, that of plain processes :mod:`liver_slurm.scheduler.local`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from liver_slurm.base.errors import ClusterError

DEFAULT_GRACE = 30.0
"""Seconds between a signal and the end where nobody says otherwise: Slurm's own default of KillWait."""

NoticeKind = Literal["preemption", "time limit", "suspension", "node", "reservation", "ending"]


@dataclass(frozen=True)
class EvictionNotice:
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
    notice: EvictionNotice | None = None
    """None while nobody wants it back."""
    grace: float = DEFAULT_GRACE
    """Seconds that its workers have at least after a signal that does not say why it came."""
    partition: str = ""
    unit: int = 0
    """Which of the job file's units it is, counted from 0."""
    ends_at: float | None = None
    """When its time limit ends it, seconds since the epoch; None: not known, or another end comes first."""


@dataclass(frozen=True)
class Headroom:
    """How many further standby jobs of one unit would start at once in one partition."""

    unit: int
    partition: str
    jobs: int


@dataclass(frozen=True)
class CapacitySnapshot:
    """One look at the reclaimable capacity."""

    time: float
    """When the look was taken, seconds since the epoch."""
    jobs: tuple[StandbyJob, ...]
    """Our standby jobs that are not over."""
    room: tuple[Headroom, ...] = ()
    """For each unit and partition, in the job file's order; units, and jobs that wait, compete for the same nodes."""
    blind: str | None = None
    """Why the scheduler could not be asked; then the rest is the last known state, and nothing is concluded from it."""
    queries: int | None = None
    """What Slurm was asked in the last minute; None where nobody counts."""
    over: Mapping[str, Literal["taken", "ended"]] = field(default_factory=dict)
    """Our jobs that are over, as long as the scheduler shows them: preempted or cancelled, or ended by themselves."""


class LaunchStopped(ClusterError):
    """The scheduler has refused a standby job after it had taken others of the same order."""

    def __init__(self, job_ids: Sequence[str], why: str) -> None:
        super().__init__(why)
        self.job_ids = tuple(job_ids)
        """Those that it has taken."""


class StandbyProvider(Protocol):
    """Starts and ends standby jobs; methods raise :class:`liver_slurm.base.errors.ClusterError` when refused."""

    def observe(self) -> CapacitySnapshot:
        """Look at capacity and at our own jobs, with a bounded number of queries."""

    def launch(self, count: int, unit: int, partition: str, after: float) -> list[str]:
        """Start ``count`` standby jobs of a unit in a partition, in ``after`` seconds at the earliest.

        Returns:
            their ids.

        Raises:
            LaunchStopped: one was refused, and those before it were not.
        """

    def release(self, job_id: str) -> None:
        """End one standby job."""

    def defer(self, job_ids: Sequence[str], seconds: float) -> None:
        """Let jobs that wait in the queue not start for so long; one that has started by now goes on."""

    def close(self) -> None:
        """End every standby job that this source started."""


@dataclass(frozen=True)
class SuccessorJob:
    """The job that is to take the run over."""

    job_id: str
    state: str
    """Slurm's, e.g. ``PENDING``."""
    why: str = ""
    """Why it is pending."""


@dataclass(frozen=True)
class GuaranteedJob:
    """What Slurm says of the guaranteed job and its successor. Times are seconds since the epoch."""

    end_time: float | None
    """When its time limit ends it; None: it has none."""
    time_limit: float | None
    """Seconds."""
    successor: SuccessorJob | None = None


class GuaranteedJobSource(Protocol):
    """Looks at the guaranteed job and submits its successor; methods raise ClusterError when refused."""

    def observe(self) -> GuaranteedJob:
        """Return one look, with one query."""

    def submit(self) -> str:
        """Submit the successor; returns its id."""

    def close(self) -> None:
        """End the successor, if there is one: the run needs none any more."""


Fate = Literal["requeued", "preempted", "running", "over"]
"""Of the guaranteed job: in the queue again; its grace time runs; nothing happens to it; it ends for good."""


class NodeReleaser(Protocol):
    """Whoever can take nodes of the guaranteed job back."""

    def give_back(self, component: int, keep: int) -> tuple[tuple[str, ...], bool]:
        """Take all but the first ``keep`` nodes of a component; 0: end it.

        Returns:
            the nodes that are free now, and whether single nodes of it may be given back once more.

        Raises:
            ClusterError: Slurm refused.
        """

    def stop(self) -> None:
        """Do not wait for nodes any more."""


@dataclass(frozen=True)
class JobStart:
    """One start of a Slurm job: a job that is requeued starts again under the same id."""

    job_id: str = ""
    """Empty: no Slurm job."""
    restarts: int = 0
