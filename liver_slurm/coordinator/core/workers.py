"""Registered workers, and the eviction notices that they have: the memory of one coordinator process.

They outlive no coordinator: with the next one they register again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from liver_slurm.base.frozen import replace
from liver_slurm.base.table import Table
from liver_slurm.config.schema import JobSection
from liver_slurm.scheduler.ports import NoticeKind

BEATS_A_SECOND = 1000.0
"""Heartbeats that a coordinator wants in a second, of all workers together: each costs it some 40 µs."""
BEATS = 5.0
"""Heartbeats that each worker sends in ``job.lost_after`` at least; one whose job is over may miss as many until it is
lost."""


@dataclass(frozen=True)
class Eviction:
    """An eviction notice, as the coordinator keeps it."""

    kind: NoticeKind | Literal["signal", "over", "successor"]
    """``signal``: it does not say why; ``over``: the job is over, its processes have not ended yet; ``successor``:
    another job takes the place of its job."""
    reason: str
    deadline: float
    """When the worker will be gone at the earliest, seconds since the epoch; infinity: nobody will kill it."""
    at: float
    """When it was first heard of."""

    @property
    def returns(self) -> bool:
        """The worker will be back by itself: it is only suspended, and is not told to exit."""
        return self.kind == "suspension"

    @property
    def explains_signals(self) -> bool:
        """It is why a signal came, and its deadline is the scheduler's own, where a signal's is an estimate."""
        return self.kind in ("preemption", "time limit", "ending")


def process(host: str, pid: int, began: int) -> str:
    """Return what tells one process from all others, as records have it."""
    return f"{host} {pid} {began}"


@dataclass(frozen=True)
class Worker:
    """One registered worker."""

    name: str
    peer: bytes
    role: Literal["live", "standby"]
    host: str
    pid: int
    job_id: str
    device: str
    arrived: float
    """When it became warm; orders joiners."""
    seen: float
    """When it was last heard of."""
    began: int = 0
    """When its process began, see :class:`liver_slurm.protocol.messages.Register`; 0: it did not say."""
    generation: int = -1
    step: int = 0
    step_at: float = 0.0
    """When it reported that step."""
    step_seconds: float = 0.0
    warm: bool = False
    rejected: int = 0
    """Messages that it has rejected."""
    mirror: str = "none"
    """How much of its state its keeper has, see :class:`liver_slurm.protocol.messages.Heartbeat`."""
    validating: tuple[int, float] | None = None
    """Training stands for a validation, see :class:`liver_slurm.protocol.messages.Heartbeat`."""
    mirror_way: str = ""
    mirror_bytes: int = 0
    mirror_proofs: tuple[int, int] = (0, 0)
    since_step: float | None = None
    """See :class:`liver_slurm.protocol.messages.Heartbeat`; of :attr:`step_at`."""
    computing: bool = False
    copying: bool = False
    """It copies a checkpoint to a second place."""
    signalled: Eviction | None = None
    """What the worker itself has said."""
    announced: Eviction | None = None
    """What the scheduler says of its job, as long as it says so."""
    dismissed: bool = False
    """It was told to leave."""
    outside_since: float = 0.0
    """Since when it has said that it is in a world which is over, and before no other; 0.0: it does not."""
    finished: bool = False
    """It has trained the last step."""

    @property
    def process(self) -> str:
        """Which process it is: another one that has its name is another worker."""
        return process(self.host, self.pid, self.began)

    @property
    def eviction(self) -> Eviction | None:
        """The notice that counts: the scheduler's where it explains the signal, else the one with less time left."""
        signalled, announced = self.signalled, self.announced
        if signalled is None or announced is None:
            return signalled or announced
        if announced.returns and signalled.returns:
            return signalled  # the record has it at once, the worker is stopped a little later
        # A signal that comes when the announced time is up is the last one, and leaves a moment more.
        if announced.explains_signals:
            return announced if signalled.at < announced.deadline else signalled
        return min(announced, signalled, key=lambda notice: notice.deadline)

    @property
    def staying(self) -> bool:
        """It has no notice and was not told to leave."""
        return self.eviction is None and not self.dismissed

    @property
    def available(self) -> bool:
        """It stays, and could join a world at once."""
        return self.warm and self.staying


def _address(peer: bytes) -> str:
    return peer.decode("latin-1")


@dataclass(frozen=True)
class Membership:
    """All registered workers, by name."""

    workers: Mapping[str, Worker] = field(default_factory=dict)
    last_arrival: float = 0.0
    """When a worker outside the live world last became available."""
    ticked: float = 0.0
    """Time of this coordinator's last tick, seconds since the epoch; 0.0: there was none."""
    moves: int = 0
    """How often one has become available, or is so no more, or has gone."""
    by_job: Mapping[str, tuple[str, ...]] = field(default_factory=Table)
    """Names of each job's workers; kept, as the next: of thousands of workers each that goes asks for some."""
    by_peer: Mapping[str, str] = field(default_factory=Table)
    """Name of the worker at each address."""

    def beat_seconds(self, job: JobSection) -> float:
        """Return the seconds between two heartbeats of one worker: more in a large run, but some in
        ``job.lost_after``."""
        wanted = min(len(self.workers) / BEATS_A_SECOND, job.lost_after / (BEATS - 1))
        return max(job.heartbeat, wanted)

    def __post_init__(self) -> None:
        if self.workers and not self.by_job:
            jobs: dict[str, tuple[str, ...]] = {}
            for worker in self.workers.values():
                jobs[worker.job_id] = (*jobs.get(worker.job_id, ()), worker.name)
            peers = Table((_address(worker.peer), worker.name) for worker in self.workers.values())
            object.__setattr__(self, "by_job", Table(jobs.items()))
            object.__setattr__(self, "by_peer", peers)

    def put(self, worker: Worker) -> Membership:
        """Return what is known with this worker, in the place of one that has its name."""
        known, before = self.workers.get(worker.name), self
        moved = known is None or known.available != worker.available or known.job_id != worker.job_id
        if known is not None and (known.job_id, known.peer) != (worker.job_id, worker.peer):
            before = self._unlisted(known)
            known = None
        workers = Table.of(self.workers).put(worker.name, worker)
        if known is not None:
            return replace(self, workers=workers, moves=self.moves + moved)
        by_job, by_peer = Table.of(before.by_job), Table.of(before.by_peer)
        return replace(
            before,
            workers=workers,
            moves=self.moves + moved,
            by_job=by_job.put(worker.job_id, (*by_job.get(worker.job_id, ()), worker.name)),
            by_peer=by_peer.put(_address(worker.peer), worker.name),
        )

    def without(self, name: str) -> Membership:
        """Return what is known without a worker."""
        known = self.workers.get(name)
        if known is None:
            return self
        return replace(self._unlisted(known), workers=Table.of(self.workers).without(name), moves=self.moves + 1)

    def _unlisted(self, worker: Worker) -> Membership:
        others = tuple(name for name in self.by_job[worker.job_id] if name != worker.name)
        by_job, address = Table.of(self.by_job), _address(worker.peer)
        by_job = by_job.put(worker.job_id, others) if others else by_job.without(worker.job_id)
        by_peer = Table.of(self.by_peer)
        if by_peer.get(address) == worker.name:
            by_peer = by_peer.without(address)
        return replace(self, by_job=by_job, by_peer=by_peer)

    def at(self, peer: bytes) -> Worker | None:
        """Return the worker at an address, if one is registered there."""
        name = self.by_peer.get(_address(peer))
        return self.workers[name] if name is not None else None

    def __contains__(self, name: object) -> bool:
        return name in self.workers

    def get(self, name: str) -> Worker | None:
        """Return the worker of that name, if it is registered."""
        return self.workers.get(name)

    def of(self, names: Iterable[str]) -> list[Worker]:
        """Return those of the named workers that are registered, in the order of the names."""
        return [self.workers[name] for name in names if name in self.workers]

    def processes(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return which process each of the named workers is; empty for one that is not registered."""
        known = (self.workers.get(name) for name in names)
        return tuple(worker.process if worker is not None else "" for worker in known)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return those of the names under which no worker is registered."""
        return [name for name in names if name not in self.workers]

    def with_role(self, role: Literal["live", "standby"]) -> list[Worker]:
        """Return all guaranteed workers, or all standby workers."""
        return [worker for worker in self.workers.values() if worker.role == role]

    def of_job(self, job_id: str, role: Literal["live", "standby"]) -> list[Worker]:
        """Return the workers of one job."""
        return [worker for worker in self.of(self.by_job.get(job_id, ())) if worker.role == role]

    @property
    def staying(self) -> list[Worker]:
        """Workers without a notice that were not told to leave."""
        return [worker for worker in self.workers.values() if worker.staying]

    @property
    def available(self) -> list[Worker]:
        """Workers that stay and could join a world at once."""
        return [worker for worker in self.workers.values() if worker.available]
