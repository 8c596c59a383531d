"""From Slurm's records to what is known of a standby job: whether it will go away, why, and by when. Pure.

A deadline is never later than the moment at which Slurm kills. Where the record says it (EndTime, which preemption and
the time limit move), it is taken from there; what a bare signal leaves follows from the cluster's settings, see
:meth:`Terms.grace`. Measured behaviour: a job that is preempted with GraceTime 0, cancelled or out of time gets SIGTERM
and, KillWait later, SIGKILL; with a GraceTime it gets a first SIGTERM that early, and the same again at its end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from liver_slurm.config.schema import StandbySection
from liver_slurm.config.units import WARNING, warning_seconds
from liver_slurm.scheduler.ports import DEFAULT_GRACE, EvictionNotice, StandbyJob
from liver_slurm.scheduler.slurm.records import JobInfo, NodeInfo, PartitionInfo, ReservationInfo

_STATES: dict[str, Literal["pending", "running", "suspended", "ending"]] = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "REQUEUED": "pending",
    "SUSPENDED": "suspended",
    "STOPPED": "suspended",
    "COMPLETING": "ending",
}
_NODE_GOES = {
    "drain": "drained",
    "draining": "drained",
    "drained": "drained",
    "fail": "about to fail",
    "failing": "about to fail",
    "reboot_requested": "about to be rebooted",
    "reboot_issued": "about to be rebooted",
}
_TAKES_BUSY_NODES = frozenset({"MAINT", "IGNORE_JOBS"})
"""Flags of reservations that may be made over running jobs; any other kind waits for them."""


@dataclass(frozen=True)
class Terms:
    """How this cluster takes a job back."""

    kill_wait: float = DEFAULT_GRACE
    """KillWait: seconds from the last SIGTERM to SIGKILL."""
    partition_grace: Mapping[str, float] = field(default_factory=dict)
    """GraceTime of each partition, seconds."""
    qos_grace: Mapping[str, float] | None = None
    """GraceTime of each QOS, seconds, where the QOS decides what is preempted; None: the partition does."""
    warning: float = WARNING
    """Seconds before the time limit that a standby is warned, by signal or, should it be lost, by the record."""
    lead: float = 300.0
    """Seconds before a reservation's start that its nodes are left."""

    def grace(self, job: JobInfo) -> float:
        """Return the seconds that are left at least after a signal that does not say why it came.

        A cancelled job has KillWait; one that is preempted has its GraceTime, or KillWait if that is 0; one that is
        warned of its time limit has the warning's.
        """
        if self.qos_grace is None:
            preempted = self.partition_grace.get(job.partition, 0.0)
        else:
            preempted = self.qos_grace.get(job.qos, 0.0)
        return min(self.kill_wait, self.warning, preempted or math.inf)


def make_terms(
    standby: StandbySection,
    lead: float,
    config: Mapping[str, str],
    partitions: Iterable[PartitionInfo],
    qos_grace: Mapping[str, float],
) -> Terms:
    """Terms from ``scontrol show config``, the partitions, and the graces of QOSs (empty where there are none)."""
    seconds = kill_wait(config)
    return Terms(
        kill_wait=DEFAULT_GRACE if seconds is None else seconds,
        partition_grace={partition.name: float(partition.grace) for partition in partitions},
        qos_grace=qos_grace if preempts_by_qos(config) else None,
        warning=warning_seconds(standby),
        lead=lead,
    )


def kill_wait(config: Mapping[str, str]) -> float | None:
    """Return the seconds from SIGTERM to SIGKILL; None: the settings do not say."""
    seconds = re.match(r"\d+", config.get("KillWait", ""))
    return float(seconds[0]) if seconds else None


def preempts_by_qos(config: Mapping[str, str]) -> bool:
    """Return whether it is the QOS that says who preempts whom."""
    return config.get("PreemptType", "").endswith("qos")


def standby_job(
    job: JobInfo,
    nodes: Mapping[str, NodeInfo],
    reservations: Sequence[ReservationInfo],
    terms: Terms,
    now: float,
) -> StandbyJob | None:
    """Return what is known of one of our standby jobs; None if it is over.

    Args:
        nodes: by name; those that are missing say nothing.
    """
    if job.is_over:
        return None
    state = _STATES.get(job.state, "running")
    said = (
        _ending(job, state, terms),
        _suspended(state),
        _preempted(job, state, terms, now),
        _out_of_time(job, state, terms, now),
        _node_goes(job, nodes),
        _reserved(job, reservations, terms, now),
    )
    known = [one for one in said if one is not None]
    nearest = min(known, key=lambda one: math.inf if one.deadline is None else one.deadline, default=None)
    ends_at = job.end_time if state == "running" and job.preempt_time is None else None
    return StandbyJob(job.job_id, state, job.nodes, nearest, terms.grace(job), ends_at=ends_at)


def _ending(job: JobInfo, state: str, terms: Terms) -> EvictionNotice | None:
    if state != "ending":
        return None
    return EvictionNotice("ending", "the job is ending", job.end_time + terms.kill_wait if job.end_time else None)


def _suspended(state: str) -> EvictionNotice | None:
    return EvictionNotice("suspension", "the job is suspended") if state == "suspended" else None


def _preempted(job: JobInfo, state: str, terms: Terms, now: float) -> EvictionNotice | None:
    """Tell a preemption: from PreemptTime on the grace time runs, to EndTime.

    With GraceTime 0 only KillWait is left.
    """
    if job.preempt_time is None or state not in ("running", "suspended"):
        return None
    end = job.end_time if job.end_time is not None else job.preempt_time
    deadline = end if end > job.preempt_time else job.preempt_time + terms.kill_wait
    return EvictionNotice("preemption", "a job of higher priority wants the node", _not_past(deadline, terms, now))


def _out_of_time(job: JobInfo, state: str, terms: Terms, now: float) -> EvictionNotice | None:
    if state != "running" or job.end_time is None or job.preempt_time is not None or job.end_time > now + terms.warning:
        return None
    return EvictionNotice("time limit", "the job's time limit", _not_past(job.end_time, terms, now))


def _not_past(deadline: float, terms: Terms, now: float) -> float:
    """Slurm is often late: a job that still runs has not got its last SIGTERM, and KillWait follows that."""
    return deadline if deadline > now else now + terms.kill_wait


def _node_goes(job: JobInfo, nodes: Mapping[str, NodeInfo]) -> EvictionNotice | None:
    for name in job.nodes:
        flags = nodes[name].flags if name in nodes else frozenset()
        why = next((text for flag, text in _NODE_GOES.items() if flag in flags), None)
        if why is not None:
            return EvictionNotice("node", f"node {name} is {why}")
    return None


def _reserved(job: JobInfo, reservations: Sequence[ReservationInfo], terms: Terms, now: float) -> EvictionNotice | None:
    """Return the nearest reservation over a node of the job.

    Once it has begun nobody kills the job, but it is in the way.
    """
    for one in sorted(reservations, key=lambda one: one.start_time):
        if not _TAKES_BUSY_NODES & one.flags or "TIME_FLOAT" in one.flags or one.end_time <= now:
            continue
        taken = sorted(set(job.nodes) & set(one.nodes))
        if taken and one.start_time <= now + terms.lead:
            deadline = one.start_time if one.start_time > now else None
            return EvictionNotice("reservation", f"node {taken[0]} is reserved: {one.name}", deadline)
    return None
