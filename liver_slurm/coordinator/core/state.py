"""What the coordinator knows about a run. Values only: :mod:`machine` makes new ones out of old ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.membership import World
from liver_slurm.policy.stream_schedule import StreamSchedule
from liver_slurm.policy.survival import Life
from liver_slurm.policy.types import Backoff, Measured, ResizeGoal
from liver_slurm.protocol.messages import Prepared, Streamed, WorldEntered
from liver_slurm.rundir.events import CommitStats, ReconfigurationCommitted
from liver_slurm.scheduler.ports import CapacitySnapshot, LiveJob, NoticeKind


class Phase(str, Enum):
    """Where a run is; PREPARE to RETIRE are the phases of a reconfiguration."""

    STARTING = "starting"
    RECOVERING = "recovering"
    STEADY = "steady"
    PREPARE = "prepare"
    STREAM = "stream"
    CUTOVER = "cutover"
    RETIRE = "retire"
    FINISHING = "finishing"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    """The live job's time limit has come, and nothing goes on with the run by itself: it can be resumed."""

    INTERRUPTED = "interrupted"
    """Slurm has taken the live job's nodes and will start it again: the process ends, the run does not."""

    HANDED_OVER = "handed over"
    """The successor job's coordinator goes on with the run."""

    @property
    def over(self) -> bool:
        """The outcome is decided; only good-byes are left."""
        return self.ends_run or self in (Phase.INTERRUPTED, Phase.HANDED_OVER)

    @property
    def ends_run(self) -> bool:
        """No other coordinator goes on with the run."""
        return self in (Phase.FINISHED, Phase.FAILED, Phase.CANCELLED, Phase.STOPPED)


@dataclass(frozen=True)
class Settings:
    """What does not change while one coordinator process lives."""

    config: JobConfig
    run_id: str
    run_dir: str
    epoch: int
    live_workers: int
    """Live workers that world 0 waits for."""
    store_host: str
    store_port: int
    checkpoint: str = ""
    """Folder that world 0 loads; empty: it starts from the seed."""
    start_step: int = 0
    automatic: bool = True
    """Grow by itself when there are standbys; otherwise the world is resized only on request or notice."""
    standby_workers: int = 0
    """Workers that standby jobs can bring at most; 0: nobody starts any."""
    job_id: str = ""
    """The live job; empty: plain processes."""
    restarts: int = 0
    """How often Slurm has started it again."""
    heterogeneous: bool = False
    """It is a heterogeneous job, whose components can give nodes back."""


@dataclass(frozen=True)
class Eviction:
    """A notice, as the coordinator keeps it."""

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
    generation: int = -1
    step: int = 0
    step_at: float = 0.0
    """When it said so."""
    step_seconds: float = 0.0
    warm: bool = False
    rejected: int = 0
    signalled: Eviction | None = None
    """What the worker itself has said."""
    announced: Eviction | None = None
    """What the scheduler says of its job, as long as it says so."""
    dismissed: bool = False
    """Was told to leave."""
    finished: bool = False

    @property
    def departure(self) -> Eviction | None:
        """The notice that counts: the scheduler's where it explains the signal, else the one with less time left."""
        signalled, announced = self.signalled, self.announced
        if signalled is None or announced is None:
            return signalled or announced
        if announced.returns and signalled.returns:
            return signalled  # the record has it at once, the worker is stopped a little later
        # A signal that comes when the announced time is up is the last one, and leaves a moment more.
        if announced.explains_signals:
            return announced if signalled.at < announced.deadline else signalled
        return min(announced, signalled, key=lambda departure: departure.deadline)


@dataclass(frozen=True)
class Boundary:
    """A step at which the live world's members agree to stop."""

    number: int
    purpose: Literal["cutover", "checkpoint"]
    step: int
    voters: frozenset[str]
    generation: int = -1
    accepted: frozenset[str] = frozenset()
    confirmed: bool = False
    request: int = -1
    """Number of the scheduled request that it was proposed for, ahead of the reconfiguration itself; -1: none."""
    reached: float = 0.0
    """When training was first seen to stand there; 0.0: not yet."""

    @property
    def agreed(self) -> bool:
        """Every member can stop there."""
        return self.accepted == self.voters


@dataclass(frozen=True)
class Attempt:
    """One reconfiguration, from its Prepare to the last member's WorldEntered. World 0 is one without a source."""

    target: World
    source: World | None
    reason: str
    cause: Literal["start", "notice", "request", "capacity", "successor"]
    started: float
    deadline: float
    request: int = -1
    prepared: Mapping[str, Prepared] = field(default_factory=dict)
    prepare_s: float = 0.0
    schedule: StreamSchedule | None = None
    """In mode overlap, once all are prepared."""
    streamed: Mapping[str, Streamed] = field(default_factory=dict)
    committed: bool = False
    committed_at: float = 0.0
    stats: CommitStats | None = None
    """After the commit, unless this is world 0: what the event log will say, but for the pause."""
    entered: Mapping[str, WorldEntered] = field(default_factory=dict)

    involved: tuple[str, ...] = ()
    """Old members and new, each once, old ranks first. Kept, because every vote asks for it: there may be thousands."""

    def __post_init__(self) -> None:
        if not self.involved:
            old = self.source.members if self.source else ()
            object.__setattr__(self, "involved", tuple(dict.fromkeys((*old, *self.target.members))))


@dataclass(frozen=True)
class RunState:
    """Everything that :func:`liver_slurm.coordinator.core.step.step` decides from."""

    settings: Settings
    phase: Phase
    now: float
    """Time of the last input, seconds since the epoch."""
    started: float
    workers: Mapping[str, Worker] = field(default_factory=dict)
    live: World | None = None
    attempt: Attempt | None = None
    cutover: Boundary | None = None
    checkpoint: Boundary | None = None
    checkpoint_wanted: bool = False
    requests: tuple[ResizeGoal, ...] = ()
    """Not yet fulfilled, in the order in which they will be."""
    pinned: ResizeGoal | None = None
    """The last fulfilled request: the run does not grow beyond it by itself."""
    supply: CapacitySnapshot | None = None
    launch_after: float = 0.0
    last_arrival: float = 0.0
    replan: bool = True
    """Something changed that the policy should look at."""
    replan_at: float | None = None
    reason: str = ""
    """The policy's last word."""
    backoff: Backoff | None = None
    last_reconfiguration: ReconfigurationCommitted | None = None
    kept: Mapping[int, int] = field(default_factory=dict)
    """Nodes left to each component of the live job that has given some back."""
    fixed: frozenset[int] = frozenset()
    """Components of which Slurm takes no single node."""
    refused: Mapping[int, int] = field(default_factory=dict)
    """Nodes that a component would have been left with, had Slurm not refused to take the others."""
    giving_back: int | None = None
    """Component that Slurm is asked to take nodes of."""
    live_since: float = 0.0
    """When the last reconfiguration was over, seconds since the epoch; 0.0: there was none."""
    measured: tuple[Measured, ...] = ()
    """What past reconfigurations took, oldest first."""
    lives: tuple[Life, ...] = ()
    """How long standby jobs have been there, oldest first."""
    useless_since: Mapping[str, float] = field(default_factory=dict)
    """Since when each standby job that is of no use has been so, seconds since the epoch."""
    next_generation: int = 0
    anew_from: int = 0
    """Worlds of generations below this one are lost: the run has begun anew since."""
    next_boundary: int = 0
    next_request: int = 0
    open_attempt: tuple[int, frozenset[str]] | None = None
    """Generation and workers of an attempt that the last coordinator did not get to commit; they are told of it."""
    open_boundaries: tuple[int, ...] = ()
    """Boundaries that the last coordinator left open; workers are told to forget them."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    interrupted: str = ""
    """Why Slurm takes the live job's nodes away, if it does."""
    interrupted_at: int = -1
    """Steps completed by then: a checkpoint from there on is the last one wanted."""
    interrupted_until: float | None = None
    """When the workers are told to leave, whether that checkpoint is written or not; None: Slurm ends them."""
    interrupted_for_good: bool = False
    """Nobody goes on with the run by itself."""
    live_job: LiveJob | None = None
    """As last seen; None: not yet, or the run has no successors."""
    submitting: bool = False
    successor_tries: int = 0
    successor_refused: str = ""
    """Why the successor was refused, if it was."""
    save_seconds: float | None = None
    """That the last checkpoint took."""
    outcome: tuple[int, str] | None = None
    closing_deadline: float = 0.0
    closed: bool = False

    @property
    def step(self) -> int:
        """Completed optimizer steps of the run, as far as the coordinator has heard."""
        members = self.live.members if self.live else ()
        heard = [self.workers[member].step for member in members if member in self.workers]
        return max([self.live.step if self.live else self.settings.start_step, *heard])

    @property
    def generation(self) -> int:
        """Of the live world; -1: there is none yet."""
        return self.live.generation if self.live else -1
