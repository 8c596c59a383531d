"""The Slurm client on pyslurm 25.11, the only module that imports it (it is GPL-2.0, and an optional extra).

Questions about jobs, steps, nodes, partitions and reservations go through the library, in about a millisecond and
without a process. The rest is given on to Slurm's commands:

- submitting, as pyslurm knows no heterogeneous jobs; updating, as changes of the size silently do nothing;
- cancelling and signalling, as ``Job.send_signal`` reads errno without having reset it, so that a signal which was
  delivered may be reported as failed for the reason of an earlier call;
- settings and node names, which are asked for once.

The functions that turn pyslurm's objects into records are pure; attribute names and units are those of the 25.11.2
source distribution (``core/job/job.pyx``, ``core/job/step.pyx``, ``core/node.pyx``, …).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from liver_slurm.base.errors import ClusterError
from liver_slurm.base.query_budget import QueryBudget
from liver_slurm.scheduler.slurm.client import CommandClient, Receiver, Version
from liver_slurm.scheduler.slurm.command import NotAnswering, is_passing, retried
from liver_slurm.scheduler.slurm.parsing import Expand, node_state, plain_text
from liver_slurm.scheduler.slurm.records import JobInfo, NodeInfo, PartitionInfo, ReservationInfo, StepInfo

T = TypeVar("T")

UNLIMITED = "UNLIMITED"
"""pyslurm.constants.UNLIMITED"""
_FLAG_WORDS = {"MAINTENANCE": "MAINT", "IGNORE_RUNNING_JOBS": "IGNORE_JOBS", "SPECIFIC_NODES": "SPEC_NODES"}
"""pyslurm's names of reservation flags that scontrol has other words for."""
_NOT_IN_SERVICE = frozenset({"down", "drain", "drained", "draining", "fail", "failing"})

_loaded_for: str | None = None
"""SLURM_CONF of the cluster that the library talks to, once it is loaded."""


def load_library(slurm_conf: str | None) -> Any:
    """Return the module pyslurm, talking to the cluster of ``slurm_conf`` (None: Slurm's default)."""
    global _loaded_for
    import pyslurm

    # Loading it connects it, to the cluster of the moment; another one needs a new start.
    name = slurm_conf or ""
    if _loaded_for is not None and _loaded_for != name:
        pyslurm.slurm_fini()
        pyslurm.slurm_init(slurm_conf)
    _loaded_for = name
    return pyslurm


class PyslurmClient:
    """:class:`liver_slurm.scheduler.slurm.client.SlurmClient` on pyslurm; what it cannot do, ``commands`` do."""

    def __init__(self, commands: CommandClient, slurm_conf: str | None, budget: QueryBudget | None = None) -> None:
        self._commands = commands
        self._budget = budget
        self._library = load_library(slurm_conf)
        self._accounts_gpus: bool | None = None
        """Whether the cluster accounts for GPUs; None: nobody has had to know yet."""

    def version(self) -> Version:
        return self._commands.version()

    def config(self) -> dict[str, str]:
        """Return Slurm's settings, in scontrol's words."""
        return self._commands.config()

    def qos_grace(self) -> dict[str, float]:
        return self._commands.qos_grace()

    def hostnames(self, expression: str) -> tuple[str, ...]:
        return self._commands.hostnames(expression)

    def jobs(self, ids: Sequence[str] = (), names: Sequence[str] = (), *, own: bool = False) -> list[JobInfo]:
        """Return jobs by id or name, of one question for all jobs."""
        wanted = set(ids)
        found = []
        for job in self._ask(lambda: self._library.Jobs.load(), 1).values():
            if names and job.name not in names:
                continue
            if (names or own) and job.user_id != os.getuid():
                continue
            if wanted and not wanted & job_ids(job):
                continue
            found.append(job_info(job, self.hostnames))
        return found

    def steps(self, job_id: str) -> list[StepInfo]:
        numbers = {job.number for job in self.jobs([job_id])}
        if not numbers:
            return []
        of_jobs = self._ask(lambda: self._library.JobSteps.load_all(), 1)
        return [step_info(step, self.hostnames) for number in numbers for step in of_jobs.get(number, {}).values()]

    def partitions(self) -> list[PartitionInfo]:
        return [partition_info(one) for one in self._ask(lambda: self._library.Partitions.load(), 2).values()]

    def nodes(self, partition: str | None = None) -> list[NodeInfo]:
        """Return the nodes of one partition, or all.

        Which GPUs are taken pyslurm knows only where the cluster accounts for them; elsewhere sinfo is asked.
        """
        if self._accounts_gpus is False:
            return self._commands.nodes(partition)
        nodes = list(self._ask(lambda: self._library.Nodes.load(), 2).values())
        if self._accounts_gpus is None and any(_gpus(node.configured_gres) for node in nodes):
            self._accounts_gpus = self._ask_whether_gpus_are_accounted()
            if not self._accounts_gpus:
                return self._commands.nodes(partition)
        infos = [node_info(node) for node in nodes]
        return [info for info in infos if partition is None or partition in info.partitions]

    def reservations(self) -> list[ReservationInfo]:
        found = self._ask(lambda: self._library.Reservations.load(), 1).values()
        try:
            return [reservation_info(one, self.hostnames) for one in found]
        except ValueError:  # a flag that pyslurm has no name for
            return self._commands.reservations()

    def submit(self, script: Path, arguments: Sequence[str] = ()) -> str:
        return self._commands.submit(script, arguments)

    def cancel(self, ids: Sequence[str]) -> None:
        self._commands.cancel(ids)

    def signal(self, job_id: str, name: str, to: Receiver = "steps") -> None:
        self._commands.signal(job_id, name, to)

    def update_job(self, job_id: str, changes: Mapping[str, str]) -> None:
        self._commands.update_job(job_id, changes)

    def _ask_whether_gpus_are_accounted(self) -> bool:
        tres = self._ask(lambda: self._library.slurmctld.Config.load(), 1).accounting_storage_tres
        return any(name == "gres/gpu" or name.startswith("gres/gpu:") for name in tres)

    def _ask(self, question: Callable[[], T], queries: int) -> T:
        def attempt() -> T:
            if self._budget is not None:
                self._budget.spend(queries)
            try:
                return question()
            except self._library.RPCError as error:
                message = f"pyslurm: {error.msg or error}"
                raise NotAnswering(message) if is_passing(message) else ClusterError(message) from error

        return retried(attempt)


def job_ids(job: Any) -> set[str]:
    """Return all ids by which squeue finds a ``pyslurm.Job``."""
    return {str(one) for one in (job.id, job.heterogeneous_id, job.array_id, job_name(job)) if one}


def job_name(job: Any) -> str:
    """Return a ``pyslurm.Job``'s id as squeue writes it.

    ``21``, ``21+1``, ``21_3`` or, of an array's rest, ``21_[4-7]``.
    """
    if job.heterogeneous_id:
        return f"{job.heterogeneous_id}+{job.heterogeneous_offset or 0}"  # the first has offset 0, given as None
    if job.array_id:
        waiting = job.array_tasks_waiting
        return f"{job.array_id}_{f'[{waiting}]' if waiting else job.array_task_id or 0}"
    return str(job.id)


def job_info(job: Any, expand: Expand) -> JobInfo:
    """Return the record of a ``pyslurm.Job``; its time limit is in minutes there."""
    return JobInfo(
        job_id=job_name(job),
        state=job.state,
        partition=job.partition or "",
        nodes=expand(job.allocated_nodes) if job.allocated_nodes else (),
        preempt_time=_epoch(job.preempt_time),
        restarts=job.requeue_count or 0,
        reason=plain_text(job.state_reason or ""),
        time_limit=None if job.time_limit is None else job.time_limit * 60.0,
        end_time=_epoch(job.end_time),
        name=job.name or "",
        comment=job.comment or "",
        qos=job.qos or "",
        number=job.id,
    )


def step_info(step: Any, expand: Expand) -> StepInfo:
    """Return the record of a ``pyslurm.JobStep``.

    Its nodes are a compressed list that was split at every comma there.
    """
    nodes = ",".join(step.allocated_nodes)
    return StepInfo(
        step_id=f"{step.job_id}.{step.id}",
        name=step.name or "",
        state=step.state,
        nodes=expand(nodes) if nodes else (),
        tasks=step.ntasks,
        start_time=_epoch(step.start_time),
    )


def partition_info(partition: Any) -> PartitionInfo:
    """Return the record of a ``pyslurm.Partition``; its longest time is in minutes there."""
    longest, most = partition.max_time, partition.max_nodes
    return PartitionInfo(
        name=partition.name,
        is_default=partition.is_default,
        is_up=partition.state == "UP",
        nodes=partition.nodes or "",
        total_nodes=partition.total_nodes,
        max_time=None if longest in (None, UNLIMITED) else longest * 60.0,
        max_nodes=None if most in (None, UNLIMITED) else most,
        priority_tier=partition.priority_tier or 0,
        preempt_mode=partition.preempt_mode or "",
        grace=partition.preemption_grace_time or 0,
    )


def node_info(node: Any) -> NodeInfo:
    """Return the record of a ``pyslurm.Node``; memory is in mebibytes there too."""
    state = node_state(node.state)
    in_service = not _NOT_IN_SERVICE & set(state.split("+"))
    gpus = _gpus(node.configured_gres)
    memory = node.real_memory or 0
    return NodeInfo(
        name=node.name,
        state=state,
        cpus_idle=node.idle_cpus if in_service else 0,
        cpus=node.total_cpus,
        gpus_idle=gpus - _gpus(node.allocated_gres),
        gpus=gpus,
        memory_idle=memory - node.allocated_memory,
        memory=memory,
        features=frozenset(node.available_features),
        reason=node.reason or "",
        partitions=frozenset(node.partitions),
    )


def reservation_info(reservation: Any, expand: Expand) -> ReservationInfo:
    """Return the record of a ``pyslurm.Reservation``.

    Raises:
        ValueError: it has a flag that pyslurm has no name for.
    """
    flags = reservation.flags
    names = [one.name for one in type(flags) if one in flags]
    return ReservationInfo(
        name=reservation.name,
        start_time=float(reservation.start_time),
        end_time=float(reservation.end_time),
        nodes=expand(reservation.nodes) if reservation.nodes else (),
        flags=frozenset(_FLAG_WORDS.get(name, name) for name in names),
    )


def _epoch(value: int | None) -> float | None:
    return None if value is None else float(value)


def _gpus(gres: Mapping[str, Any]) -> int:
    """GPUs in ``{"gpu": 4}`` or ``{"gpu:a100": 2, "gpu:h100": 2}``; both at once count the same ones twice."""
    if "gpu" in gres and len([name for name in gres if name.startswith("gpu:")]) > 0:
        return int(gres["gpu"])
    return sum(int(count) for name, count in gres.items() if name == "gpu" or name.startswith("gpu:"))
