"""What Slurm says about jobs, steps, nodes, partitions and reservations, whatever it was asked through."""

from __future__ import annotations

from dataclasses import dataclass

_OVER = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)


@dataclass(frozen=True)
class JobInfo:
    """One job, or one component of a heterogeneous job. Times are seconds since the epoch."""

    job_id: str
    """``21``, or ``21+1`` for component 1 of the heterogeneous job 21."""
    state: str
    """Slurm's long state, e.g. ``RUNNING``."""
    partition: str
    nodes: tuple[str, ...]
    preempt_time: float | None
    """When Slurm chose it for preemption; from then on its grace time runs, and ``end_time`` says until when."""
    restarts: int
    """How often it was requeued."""
    reason: str
    """Why it is pending; empty if there is no reason."""
    time_limit: float | None
    """Seconds; None: no limit."""
    end_time: float | None
    """When it ended or will end at the latest; None: unknown or never."""
    name: str
    comment: str
    qos: str = ""
    number: int = 0
    """Its own numeric id: that of a heterogeneous job's component differs from its leader's, and scontrol and scancel
    take it to mean this component alone."""

    @property
    def leader(self) -> str:
        """The id without the component: what ``scancel`` takes to end the whole job."""
        return self.job_id.partition("+")[0]

    @property
    def component(self) -> int:
        """Component of the heterogeneous job; 0 for an ordinary one."""
        return int(self.job_id.partition("+")[2] or 0)

    @property
    def is_over(self) -> bool:
        """Whether it has ended; COMPLETING has not, its nodes are still taken."""
        return self.state in _OVER

    @property
    def was_taken(self) -> bool:
        """Whether, being over, it was preempted or cancelled, and did not end by itself."""
        return self.state in ("PREEMPTED", "CANCELLED") or self.preempt_time is not None

    @property
    def ends(self) -> bool:
        """Whether it has ended or is ending: nothing more needs to be done about it."""
        return self.is_over or self.state == "COMPLETING"


@dataclass(frozen=True)
class StepInfo:
    """One step of a job. Times are seconds since the epoch."""

    step_id: str
    """``21.0`` or ``21.batch``; the number in front is the component's own."""
    name: str
    state: str
    nodes: tuple[str, ...]
    tasks: int
    start_time: float | None


@dataclass(frozen=True)
class NodeInfo:
    """One node as it is right now."""

    name: str
    state: str
    """e.g. ``idle``, ``mixed``, ``allocated``, ``idle+drain``."""
    cpus_idle: int
    cpus: int
    gpus_idle: int
    gpus: int
    memory_idle: int
    """Mebibytes that no job has asked for; equal to ``memory`` where Slurm does not track memory."""
    memory: int
    features: frozenset[str]
    reason: str = ""
    """Why an administrator, or Slurm, has taken it out of service."""
    partitions: frozenset[str] = frozenset()
    """Those of the partitions asked for that it is in."""
    has_more: bool = False
    """Slurm has cut its list of features off: it may have others, too."""

    @property
    def flags(self) -> frozenset[str]:
        """The state's parts, e.g. ``idle`` and ``drain``, ``maint``, ``reserved``, ``not_responding``."""
        return frozenset(self.state.split("+"))


@dataclass(frozen=True)
class PartitionInfo:
    """One partition."""

    name: str
    is_default: bool
    is_up: bool
    nodes: str
    """Its nodes, compressed."""
    total_nodes: int
    max_time: float | None
    """Seconds; None: no limit."""
    max_nodes: int | None
    """Nodes of one job at most; None: no limit."""
    priority_tier: int
    preempt_mode: str
    grace: int
    """GraceTime, seconds."""


@dataclass(frozen=True)
class ReservationInfo:
    """One reservation. Times are seconds since the epoch."""

    name: str
    start_time: float
    end_time: float
    nodes: tuple[str, ...]
    flags: frozenset[str]
    """e.g. ``MAINT``, ``IGNORE_JOBS``."""
