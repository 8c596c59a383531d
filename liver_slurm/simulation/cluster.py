"""A Slurm cluster whose free nodes are those of a trace, behind the interface through which the product asks Slurm.

Other users have a node while the trace does not offer it. They want it back ``notice`` seconds before its span ends:
Slurm then preempts the standby job on it, which has so long until it is killed. A job starts once it has waited in the
queue for its time and has idle nodes; its time limit ends it as Slurm would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

from liver_slurm.base.errors import ClusterError
from liver_slurm.scheduler.slurm.client import Receiver, Version
from liver_slurm.scheduler.slurm.parsing import parse_duration
from liver_slurm.scheduler.slurm.records import JobInfo, NodeInfo, PartitionInfo, ReservationInfo, StepInfo
from liver_slurm.scheduler.slurm.submitit_launcher import LaunchRequest
from liver_slurm.simulation.clock import EventQueue
from liver_slurm.simulation.sacct import expand
from liver_slurm.simulation.trace import Span, Trace

KILL_WAIT = 30.0
"""Slurm's default: seconds from SIGTERM to SIGKILL for a job that is cancelled."""


class Listener(Protocol):
    """Whoever the jobs' processes belong to."""

    def started(self, job: Job) -> None:
        """Hear that a job has its nodes."""

    def noticed(self, job: Job, signal: str) -> None:
        """Hear that its processes get a signal; ``job.ends_at`` says when they are killed."""

    def killed(self, job: Job) -> None:
        """Hear that its processes are gone."""


@dataclass
class Job:
    """One standby job. Times are the clock's."""

    job_id: str
    name: str
    comment: str
    partition: str
    width: int
    """Nodes that it needs."""
    tasks: int
    """On each of them."""
    limit: float
    """Seconds; infinity: none."""
    eligible: float
    """When it has waited long enough."""
    nodes: tuple[str, ...] = ()
    state: str = "PENDING"
    ends_at: float = math.inf
    """When it is killed, as far as that is decided."""
    preempted_at: float | None = None
    shown: JobInfo | None = None
    """As Slurm has last shown it."""


@dataclass
class _Node:
    name: str
    on_offer: bool = False
    job: Job | None = None
    wanted_at: float = math.inf
    """When its owner takes it, once that is known; no job starts on it from then on."""


@dataclass(frozen=True)
class Conditions:
    """How the cluster treats our jobs."""

    partition: str
    tasks: int
    """Workers that a node has room for."""
    cpus: int
    gpus: int
    notice: float = 0.0
    """Seconds; 0: nodes are taken without a word."""
    warning: float = 30.0
    """Seconds before its time limit that a job is told."""
    queue_wait: Callable[[], float] = field(default=lambda: 0.0)
    """Draws how long the next job waits in the queue at least, seconds."""


class SimulatedCluster:
    """:class:`liver_slurm.scheduler.slurm.client.SlurmClient` on a trace."""

    def __init__(self, events: EventQueue, trace: Trace, conditions: Conditions) -> None:
        self._events, self._conditions = events, conditions
        self._nodes: dict[str, _Node] = {}
        self._jobs: dict[str, Job] = {}
        self._numbers = 0
        self._listener: Listener | None = None
        self._table: list[NodeInfo] | None = None
        self.changes = 0
        """Grows with all that a look at the cluster would see."""
        origin = events.now()
        for span in trace.spans:
            self._nodes.setdefault(span.node, _Node(span.node))
            self._expect(span, origin, origin + trace.seconds)

    def attach(self, listener: Listener) -> None:
        """Say from now on what becomes of jobs."""
        self._listener = listener

    # ---- what other users do

    def _expect(self, span: Span, origin: float, over: float) -> None:
        node, begin, end = self._nodes[span.node], origin + span.begin, origin + span.end
        self._events.at(begin, lambda: self._offer(node))
        if end >= over:
            return
        if self._conditions.notice > 0.0 and not span.sudden:
            self._events.at(max(begin, end - self._conditions.notice), lambda: self._want(node, end))
        self._events.at(end, lambda: self._take(node))

    def _offer(self, node: _Node) -> None:
        node.on_offer, node.wanted_at = True, math.inf
        self._changed()
        self._schedule()

    def _want(self, node: _Node, end: float) -> None:
        node.wanted_at = end
        self._changed()
        job = node.job
        if job is not None and end < job.ends_at:
            first = job.preempted_at is None
            job.preempted_at = self._events.now() if first else job.preempted_at
            job.ends_at = end
            self._tell().noticed(job, "SIGTERM")

    def _take(self, node: _Node) -> None:
        node.on_offer = False
        self._changed()
        if node.job is not None:
            self._kill(node.job)

    # ---- jobs

    def launch(self, request: LaunchRequest) -> list[str]:
        """Submit standby jobs, as :func:`liver_slurm.scheduler.slurm.submitit_launcher.launch` does."""
        asked = request.parameters
        limit = parse_duration(str(asked["additional_parameters"]["time"]))
        begin = float(str(asked["additional_parameters"].get("begin", "now+0")).removeprefix("now+"))
        ids = []
        for _ in range(request.count):
            self._numbers += 1
            job = Job(
                job_id=str(self._numbers),
                name=str(asked["job_name"]),
                comment=str(asked["comment"]),
                partition=str(asked["partition"]),
                width=int(asked["nodes"]),
                tasks=int(asked["ntasks_per_node"]),
                limit=math.inf if limit is None else limit,
                eligible=self._events.now() + max(self._conditions.queue_wait(), begin),
            )
            self._jobs[job.job_id] = job
            self._events.at(job.eligible, self._schedule)
            ids.append(job.job_id)
        self._changed()
        return ids

    def _schedule(self) -> None:
        """Start the jobs that can start, in the order in which they came."""
        for job in list(self._jobs.values()):
            if job.state != "PENDING" or job.eligible > self._events.now():
                continue
            if job.partition != self._conditions.partition or job.tasks > self._conditions.tasks:
                continue
            free = [node for node in self._nodes.values() if _is_idle(node)][: job.width]
            if len(free) == job.width:
                self._start(job, free)

    def _start(self, job: Job, nodes: Sequence[_Node]) -> None:
        now = self._events.now()
        for node in nodes:
            node.job = job
        job.nodes, job.state, job.ends_at = tuple(node.name for node in nodes), "RUNNING", now + job.limit
        self._changed()
        if job.limit < math.inf:
            limit_at = job.ends_at
            self._events.at(limit_at - self._conditions.warning, lambda: self._warn(job, limit_at))
            self._events.at(limit_at, lambda: self._end_at(job, limit_at))
        self._tell().started(job)

    def _warn(self, job: Job, limit_at: float) -> None:
        if job.state == "RUNNING" and job.ends_at == limit_at:
            self._tell().noticed(job, "SIGUSR2")

    def _end_at(self, job: Job, time: float) -> None:
        if job.ends_at == time:
            self._kill(job)

    def _kill(self, job: Job) -> None:
        if self._remove(job):
            self._tell().killed(job)

    def nodes_of(self, job_id: str) -> tuple[str, ...]:
        """Name the nodes of a job; none: it is over, or waits."""
        job = self._jobs.get(job_id)
        return () if job is None else job.nodes

    def left(self, job_id: str) -> None:
        """Learn that all processes of a job have ended by themselves."""
        job = self._jobs.get(job_id)
        if job is not None:
            self._remove(job)

    def _remove(self, job: Job) -> bool:
        """Forget a job and free its nodes; False: it is over already."""
        if self._jobs.pop(job.job_id, None) is None:
            return False
        for name in job.nodes:
            self._nodes[name].job = None
        job.state = "COMPLETED"
        self._changed()
        self._schedule()
        return True

    def _changed(self) -> None:
        self.changes += 1
        self._table = None

    def _tell(self) -> Listener:
        assert self._listener is not None, "attached before anything happens"
        return self._listener

    # ---- what the product asks

    def jobs(self, ids: Sequence[str] = (), names: Sequence[str] = (), *, own: bool = False) -> list[JobInfo]:
        """Return jobs; one that is over is forgotten at once."""
        return [_info(job) for job in self._jobs.values() if job.job_id in ids or job.name in names]

    def nodes(self, partition: str | None = None) -> list[NodeInfo]:
        """Return the nodes: one partition has all."""
        if partition not in (None, self._conditions.partition):
            return []
        if self._table is None:
            self._table = [self._node_info(node) for node in self._nodes.values()]
        return self._table

    def _node_info(self, node: _Node) -> NodeInfo:
        cpus, gpus = self._conditions.cpus, self._conditions.gpus
        idle = _is_idle(node)
        return NodeInfo(
            name=node.name,
            state="idle" if idle else "allocated",
            cpus_idle=cpus if idle else 0,
            cpus=cpus,
            gpus_idle=gpus if idle else 0,
            gpus=gpus,
            memory_idle=1 << 30 if idle else 0,
            memory=1 << 30,
            features=frozenset(),
        )

    def cancel(self, ids: Sequence[str]) -> None:
        for job_id in ids:
            job = self._jobs.get(job_id)
            if job is None or job.state == "COMPLETING":
                continue
            if job.state == "PENDING":
                self._remove(job)
                continue
            job.state = "COMPLETING"
            job.ends_at = end = min(job.ends_at, self._events.now() + KILL_WAIT)
            self._changed()
            self._events.at(end, lambda job=job, end=end: self._end_at(job, end))  # type: ignore[misc]
            self._tell().noticed(job, "SIGTERM")

    def partitions(self) -> list[PartitionInfo]:
        grace = round(self._conditions.notice)
        return [
            PartitionInfo(self._conditions.partition, True, True, "", len(self._nodes), None, None, 1, "CANCEL", grace)
        ]

    def config(self) -> dict[str, str]:
        return {"KillWait": f"{KILL_WAIT:.0f} sec", "PreemptType": "preempt/partition_prio"}

    def reservations(self) -> list[ReservationInfo]:
        """Return no reservations: there are none."""
        return []

    def qos_grace(self) -> dict[str, float]:
        """Return no grace times: there are no QOS."""
        return {}

    def hostnames(self, expression: str) -> tuple[str, ...]:
        return tuple(expand(expression))

    def version(self) -> Version:
        return 25, 11, 0

    def steps(self, job_id: str) -> list[StepInfo]:
        """Refuse: nothing in a simulation asks."""
        return _refuse(f"steps of {job_id}")

    def submit(self, script: Path, arguments: Sequence[str] = ()) -> str:
        """Refuse: standby jobs come through :meth:`launch`."""
        return _refuse(f"{script.name} {' '.join(arguments)}")

    def signal(self, job_id: str, name: str, to: Receiver = "steps") -> None:
        """Refuse: nothing in a simulation asks."""
        _refuse(f"{name} to {to} of {job_id}")

    def update_job(self, job_id: str, changes: Mapping[str, str]) -> None:
        """Refuse: nothing in a simulation asks."""
        _refuse(f"{job_id} {dict(changes)}")


def _is_idle(node: _Node) -> bool:
    return node.on_offer and node.job is None and node.wanted_at == math.inf


def _info(job: Job) -> JobInfo:
    """Return a job's record; the same one for as long as nothing of it changes, as there may be thousands."""
    end = None if job.ends_at == math.inf else job.ends_at
    known = job.shown
    if known is not None and (known.state, known.preempt_time, known.end_time) == (job.state, job.preempted_at, end):
        return known
    job.shown = JobInfo(
        job_id=job.job_id,
        state=job.state,
        partition=job.partition,
        nodes=job.nodes,
        preempt_time=job.preempted_at,
        restarts=0,
        reason="Resources" if job.state == "PENDING" else "",
        time_limit=None if job.limit == math.inf else job.limit,
        end_time=end,
        name=job.name,
        comment=job.comment,
        number=int(job.job_id),
    )
    return job.shown


def _refuse(what: str) -> NoReturn:
    raise ClusterError(f"a simulated cluster does not do this: {what}")
