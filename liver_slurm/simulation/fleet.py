"""All workers of a simulated run: what they answer the coordinator, and when, as real ones would.

Of the worker's own code nothing runs here: what it does with an order is modelled by what training sees of it. A
target world is prepared in a given time; a boundary is accepted while it lies ahead; state has moved a given time after
training has come to the cutover; survivors of a broken world park. The tests of liveness simulate a single worker in
full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol import messages as m
from liver_slurm.rundir.worker_names import Role, guaranteed_prefix, standby_prefix, worker_name
from liver_slurm.simulation.boundaries import Boundaries
from liver_slurm.simulation.clock import EventQueue
from liver_slurm.simulation.cluster import Job, SimulatedCluster
from liver_slurm.simulation.costs import Costs, StepTimes
from liver_slurm.simulation.mirrored import Mirrored
from liver_slurm.simulation.progress import Progress

LATENCY = 0.001
"""Seconds that a message takes."""
RUN = "simulated"
GUARANTEED_JOB = "guaranteed"
"""Id of the guaranteed job: no number, as those of standby jobs are."""


@dataclass
class Worker:
    """One worker that is there."""

    name: str
    role: Role
    job_id: str
    host: str
    number: int
    generation: int = -1
    leaving: bool = False
    """It had a notice, or was told to leave."""


@dataclass(frozen=True)
class Target:
    """A world that is being prepared, or waits for its verdict."""

    layout: Layout
    members: tuple[str, ...]
    involved: Mapping[str, None]
    """Members of the world before that are left, then joiners; in this order."""


@dataclass
class Broken:
    """What has happened since the live world broke."""

    parked: set[str] = field(default_factory=set)


class Fleet:
    """The workers of one run."""

    def __init__(
        self,
        events: EventQueue,
        cluster: SimulatedCluster,
        progress: Progress,
        costs: Costs,
        config: JobConfig,
        say: Callable[[str, m.FromWorker], None],
        hang_up: Callable[[str, float], None],
    ) -> None:
        """
        Args:
            events: notes what happens later, and tells the time.
            cluster: is told when all processes of a job have ended.
            progress: the live world's.
            costs: what things take.
            config: the job's.
            say: takes a worker's message to the coordinator.
            hang_up: tells the coordinator that a worker's connection is closed, and since when.
        """
        self._events, self._cluster, self._progress = events, cluster, progress
        self._costs, self._config = costs, config
        self._step_times = StepTimes(config, costs.step_s)
        self._say, self._hang_up = say, hang_up
        self.workers: dict[str, Worker] = {}
        self._by_job: dict[str, dict[str, Worker]] = {}
        self.generation = -1
        """Of the live world."""
        self.members: tuple[str, ...] = ()
        """Of the live world, in rank order."""
        self._mirrored: Mirrored | None = None
        """Mirrors of the live world."""
        self._targets: dict[int, Target] = {}
        self._boundaries = Boundaries(events, progress, self._arrive)
        self._paused_at = 0.0
        self._broken: Broken | None = None
        self._ended_at: set[int] = set()
        """Boundaries at which broken worlds have ended, by number."""
        self._speakers: set[str] = set()
        """Workers whose last heartbeat had a step's duration in it."""
        self._numbers = 0
        self._run_id = RUN

    # ---- coming and going

    def begin(self, guaranteed: int, hosts: Iterable[str], run_id: str) -> None:
        """Bring the guaranteed workers of a run up, one on each of ``hosts``, warm."""
        self._run_id = run_id
        for number, host in zip(range(guaranteed), hosts, strict=True):
            self._join(worker_name(guaranteed_prefix(), number), "live", GUARANTEED_JOB, host)

    def started(self, job: Job) -> None:
        """Let the job's workers warm up, after which they can join a world."""
        self._events.after(self._costs.join_s, lambda: self._warm(job))

    def _warm(self, job: Job) -> None:
        if job.state == "RUNNING":
            hosts = [node for node in job.nodes for _ in range(job.tasks)]
            for number, host in enumerate(hosts):
                self._join(worker_name(standby_prefix(job.job_id), number), "standby", job.job_id, host)
            if job.preempted_at is not None:
                self.noticed(job, "SIGTERM")

    def _join(self, name: str, role: Role, job_id: str, host: str) -> None:
        self._numbers += 1
        worker = Worker(name, role, job_id, host, self._numbers)
        self.workers[name] = self._by_job.setdefault(job_id, {})[name] = worker
        self._say(
            name,
            m.Register(
                run_id=self._run_id, worker=name, role=role, host=host, pid=self._numbers, job_id=job_id,
                device="cuda:0", warm=True,
            ),
        )  # fmt: skip

    def noticed(self, job: Job, signal: str) -> None:
        """Let a worker in a world, or about to join one, say so; any other one leaves."""
        now = self._events.now()
        there = self._of_job(job.job_id)
        for worker in there:
            self._say(worker.name, m.Notice(worker=worker.name, reason=signal, time=now))
            if not self._is_engaged(worker):
                self._leave(worker, signal)
        if not there:
            self._cluster.left(job.job_id)  # its processes were still starting

    def killed(self, job: Job) -> None:
        """Close the job's connections at once; survivors of its world notice a little later."""
        now = self._events.now()
        there = self._of_job(job.job_id)
        hit = {worker.name for worker in there} & set(self.members)
        for worker in there:
            self._beat(worker, speaks=False)  # it was well a moment ago
        for worker in there:
            name = worker.name
            self._remove(worker)
            self._events.after(LATENCY, lambda name=name: self._hang_up(name, now))  # type: ignore[misc]
        if hit:
            self._break(f"{min(hit)} has closed its connection")

    def _of_job(self, job_id: str) -> list[Worker]:
        return list(self._by_job.get(job_id, {}).values())

    def _remove(self, worker: Worker) -> None:
        del self.workers[worker.name]
        del self._by_job[worker.job_id][worker.name]
        if not self._by_job[worker.job_id]:
            del self._by_job[worker.job_id]

    def _is_engaged(self, worker: Worker) -> bool:
        return worker.generation >= 0 or any(worker.name in target.involved for target in self._targets.values())

    def _leave(self, worker: Worker, reason: str) -> None:
        if worker.leaving:
            return
        worker.leaving = True
        self._events.after(LATENCY, lambda: self._gone(worker, reason))

    def _gone(self, worker: Worker, reason: str) -> None:
        if self.workers.get(worker.name) is not worker:
            return
        self._say(worker.name, m.Leaving(worker=worker.name, reason=reason))
        self._remove(worker)
        if worker.role == "standby" and not self._of_job(worker.job_id):
            self._cluster.left(worker.job_id)

    # ---- heartbeats

    def beat(self, *, everybody: bool) -> None:
        """Send heartbeats: of the live world's first worker and those that had that place, or of all.

        Only the first one says how long a step takes, so that the coordinator has no old word of any other.
        """
        first = self._first()
        names = self.workers if everybody else sorted({first, *self._speakers} & set(self.workers))
        for name in list(names):
            self._beat(self.workers[name], speaks=name == first)
        self._speakers = {first} if first else set()

    def _first(self) -> str:
        return next((name for name in self.members if name in self.workers), "")

    def _beat(self, worker: Worker, *, speaks: bool) -> None:
        in_world = worker.generation == self.generation >= 0
        self._say(
            worker.name,
            m.Heartbeat(
                worker=worker.name,
                generation=worker.generation,
                step=self._progress.completed() if in_world else 0,
                step_seconds=self._progress.step_s if speaks and in_world and self._broken is None else 0.0,
                warm=True,
                since_step=self._progress.since_step() if in_world else 0.0,
            ),
        )

    # ---- orders

    def receive(self, name: str, message: m.Message) -> None:
        """Do what the coordinator says to one worker."""
        worker = self.workers.get(name)
        if worker is None:
            return
        if isinstance(message, m.Prepare):
            self._prepare(message)
        elif isinstance(message, m.ProposeBoundary):
            self._vote(worker, message)
        elif isinstance(message, m.ConfirmBoundary):
            self._confirm(message)
        elif isinstance(message, m.WithdrawBoundary):
            if self._broken is None:
                self._boundaries.withdraw(message.boundary)
        elif isinstance(message, m.Commit):
            self._commit(message)
        elif isinstance(message, m.Abort):
            self._abort(message.generation)
        elif isinstance(message, m.Halt) and message.generation == self.generation:
            self._park(worker, message.reason)
        elif isinstance(message, m.HeartbeatRequest):
            self._beat(worker, speaks=name == self._first())
        elif isinstance(message, m.Leave | m.Refused):
            self._leave(worker, message.reason)

    def _prepare(self, order: m.Prepare) -> None:
        """Prepare a target world; the first of many equal orders counts."""
        if order.generation in self._targets:
            return
        members = tuple(order.members)
        left = [name for name in order.source_members if name not in order.lost]
        involved = dict.fromkeys((*left, *members))
        self._targets[order.generation] = Target(Layout.parse(order.layout), members, involved)
        if order.checkpoint:
            seconds = self._costs.load_s
        elif order.standing:
            seconds = self._costs.recover_s
        else:
            seconds = self._costs.prepare_s if order.source_generation >= 0 else 0.0
        self._events.after(seconds, lambda: self._prepared(order.generation, seconds))

    def _prepared(self, generation: int, seconds: float) -> None:
        target = self._targets.get(generation)
        self.beat(everybody=False)  # heartbeats come every second: the coordinator knows how far training is
        for name in target.involved if target is not None else {}:
            if name in self.workers:
                # All say the same of the wire: that the state takes the time that it costs.
                rate = 1.0 / self._costs.stream_s if self._costs.stream_s > 0 else 0.0
                self._say(
                    name,
                    m.Prepared(worker=name, generation=generation, ok=True, seconds=seconds, state_bytes=1, rate=rate),
                )

    # ---- boundaries

    def _vote(self, worker: Worker, order: m.ProposeBoundary) -> None:
        """Answer a proposal; a world that is broken comes to no boundary."""
        if self._broken is not None:
            return
        accepted, begun = self._boundaries.propose(order)
        vote = m.BoundaryVote(
            worker=worker.name, boundary=order.boundary, step=order.step, accepted=accepted, current_step=begun
        )
        self._events.after(LATENCY, lambda: self._say(worker.name, vote))

    def _confirm(self, order: m.ConfirmBoundary) -> None:
        """Stop there; survivors of a broken world stand there already."""
        if self._broken is None:
            self._boundaries.confirm(order)
        elif order.generation in self._targets and order.boundary not in self._ended_at:
            self._ended_at.add(order.boundary)
            self._stream(order)

    def _arrive(self, order: m.ConfirmBoundary) -> None:
        """Do what is to be done at a final boundary, where training stands now."""
        if order.purpose == "checkpoint":
            self._events.after(self._costs.stall_s, lambda: self._saved(order))
        elif order.generation in self._targets:
            self._stream(order)

    def _saved(self, order: m.ConfirmBoundary) -> None:
        if order.boundary in self._boundaries:
            first = self.members[0]
            path = f"step-{order.step}"
            self._say(first, m.CheckpointWritten(worker=first, step=order.step, ok=True, path=path))
            self._boundaries.withdraw(order.boundary)

    def _stream(self, order: m.ConfirmBoundary) -> None:
        """Move state, or what is left of it, as training has come to the cutover."""
        self._paused_at = self._events.now()
        early = 0 <= order.begin < order.step
        exposed = self._costs.exposed_overlap_s if early else self._costs.exposed_pause_s
        # The vote and the commit are part of what was exposed.
        self._events.after(max(0.0, exposed - 2 * LATENCY), lambda: self._streamed(order.generation))

    def _streamed(self, generation: int) -> None:
        target = self._targets.get(generation)
        for name in target.involved if target is not None else {}:
            if name in self.workers:
                report = m.TransferReport(paused_at=self._paused_at if name in self.members else 0.0)
                self._say(name, m.Streamed(worker=name, generation=generation, ok=True, report=report))

    def _commit(self, order: m.Commit) -> None:
        target = self._targets.pop(order.generation, None)
        if target is None:
            return
        self._events.after(LATENCY, lambda: self._enter(order, target))

    def _enter(self, order: m.Commit, target: Target) -> None:
        members = set(target.members)
        for worker in self.workers.values():
            if worker.name in members:
                worker.generation = order.generation
            elif worker.generation >= 0:
                worker.generation = -1
        self.generation, self.members = order.generation, target.members
        hosts = [self.workers[name].host if name in self.workers else "" for name in target.members]
        self._mirrored = Mirrored(self._config, target.layout, target.members, hosts, order.step)
        self._broken = None
        self._boundaries.forget()
        self._progress.enter(order.step, self._step_times(target.layout), target.layout.size)
        for name in target.members:
            if name in self.workers:
                now = self._events.now()
                self._say(name, m.WorldEntered(worker=name, generation=order.generation, step=order.step, time=now))
        if not members <= set(self.workers):
            self._break("a member was gone before it began")
        self.beat(everybody=False)

    def _abort(self, generation: int) -> None:
        """Forget a target world; the coordinator takes back its boundary, and training goes on there."""
        if self._targets.pop(generation, None) is not None and self._broken is None:
            self._boundaries.withdraw_for(generation)

    # ---- sudden deaths

    def _break(self, error: str) -> None:
        """Break the live world, which has lost a member: a collective fails at one of the others in a while."""
        if self._broken is not None:
            return
        self._stand_broken()
        generation = self.generation
        self._events.after(self._costs.detect_s, lambda: self._witness(generation, error))

    def _stand_broken(self) -> None:
        self._broken = Broken()
        self._boundaries.forget()
        self._progress.breaks()

    def _witness(self, generation: int, error: str) -> None:
        alive = [name for name in self.members if name in self.workers]
        if self.generation == generation and self._broken is not None and alive and not self._broken.parked:
            self._park(self.workers[alive[0]], error)

    def _park(self, worker: Worker, error: str) -> None:
        if self._broken is None:
            self._stand_broken()
        assert self._broken is not None
        if worker.name in self._broken.parked:
            return
        self._broken.parked.add(worker.name)
        step = self._progress.completed()
        parked = m.Parked(worker=worker.name, generation=self.generation, step=step, error=error)
        if self._mirrored is not None:
            parked = self._mirrored.parked(parked)
        self._events.after(LATENCY, lambda: self._say(worker.name, parked))
