"""What the coordinator knows about a run: values only, in parts that are each written by one module, see :data:`PARTS`.

The parts here, and the workers of :mod:`workers`, are the memory of one coordinator process; those of :mod:`parts`,
:mod:`worlds` and :mod:`barriers` outlive it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Union

from liver_slurm.base.frozen import replace
from liver_slurm.config.schema import JobConfig
from liver_slurm.coordinator.core.barriers import StepBarriers
from liver_slurm.coordinator.core.parts import Damage, History, NodeRelease, ResizeQueue
from liver_slurm.coordinator.core.records import BegunAnew, LifeBegan, Record, StartFailed
from liver_slurm.coordinator.core.workers import Membership, Worker
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase, WorldState
from liver_slurm.policy.standby_scaling import Order
from liver_slurm.rundir.events import PolicyDecided
from liver_slurm.scheduler.ports import CapacitySnapshot, GuaranteedJob, StandbyJob


class RunPhase(str, Enum):
    """The phase of a run's life cycle."""

    STARTING = "starting"
    """There is no live world yet."""
    RECOVERING = "recovering"
    """There is one, and a restarted coordinator waits for its members."""
    TRAINING = "training"
    FINISHING = "finishing"
    """A member has trained the last step."""
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    """The guaranteed job's time limit has come, and nothing goes on with the run by itself: it can be resumed."""
    INTERRUPTED = "interrupted"
    """Slurm has taken the guaranteed job's nodes and will start it again: the process ends, the run does not."""
    HANDED_OVER = "handed over"
    """The successor job's coordinator goes on with the run."""

    @property
    def over(self) -> bool:
        """The outcome is decided; only good-byes are left."""
        return self.ends_run or self in (RunPhase.INTERRUPTED, RunPhase.HANDED_OVER)

    @property
    def ends_run(self) -> bool:
        """No other coordinator goes on with the run."""
        return self in (RunPhase.FINISHED, RunPhase.FAILED, RunPhase.CANCELLED, RunPhase.STOPPED)


Phase = Union[RunPhase, ReconfigurationPhase]  # noqa: UP007


@dataclass(frozen=True)
class Settings:
    """What does not change while one coordinator process runs."""

    config: JobConfig
    run_id: str
    run_dir: str
    epoch: int
    live_workers: int
    """Guaranteed workers that world 0 waits for."""
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
    """The guaranteed job; empty: plain processes."""
    restarts: int = 0
    """How often Slurm has started it again."""
    has_checkpoint: bool = False
    """There was one of this run when the coordinator started."""
    heterogeneous: bool = False
    """It is a heterogeneous job, whose components can give nodes back."""

    @property
    def how_to_resume(self) -> str:
        """The command with which a user goes on with the run, for messages."""
        return f"liver-slurm submit --resume {self.run_dir}"

    def apply(self, record: Record) -> Settings:
        """Fold one record in: a run that is restarted starts from another checkpoint."""
        if isinstance(record, BegunAnew):
            return replace(self, checkpoint=record.checkpoint, start_step=record.step)
        return self


# ---- parts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lifecycle:
    """The run's life cycle."""

    phase: RunPhase = RunPhase.STARTING
    started: float = 0.0
    """When this coordinator started, seconds since the epoch."""
    finishing: float = 0.0
    """When a member had trained the last step, seconds since the epoch; of the phase FINISHING."""
    outcome: tuple[int, str] | None = None
    """Exit code and reason, once decided."""
    closing_deadline: float = 0.0
    """When the process ends although workers are left."""
    hurried: bool = False
    """A signal has come since the outcome was decided: copies of a checkpoint are not waited for."""
    closed: bool = False
    """The process was told to end."""


@dataclass(frozen=True)
class Interruption:
    """The guaranteed job's nodes are being taken away."""

    reason: str = ""
    """Empty: they are not."""
    at_step: int = -1
    """Steps completed by then: a checkpoint from there on is the last one wanted."""
    until: float | None = None
    """When the workers are told to leave, whether that checkpoint is written or not; None: Slurm ends them."""
    for_good: bool = False
    """Nobody goes on with the run by itself."""

    @property
    def resumes(self) -> bool:
        """Workers are going to be told to leave, and the run goes on by itself later."""
        return self.until is not None and not self.for_good


@dataclass(frozen=True)
class StandbyPool:
    """Standby jobs and the capacity for more."""

    capacity: CapacitySnapshot | None = None
    """As last seen; None: not yet."""
    launch_after: float = 0.0
    useless_since: Mapping[str, float] = field(default_factory=dict)
    """Since when each standby job that is of no use has been so, seconds since the epoch."""
    starting: Mapping[str, str] = field(default_factory=dict)
    """Jobs that were submitted, and the partition of each, until a worker is ready, we end them or they are gone."""
    overdue: frozenset[str] = frozenset()
    """Those that the last look did not find."""
    orders: tuple[Order, ...] = ()
    """Jobs that are still to be started, in portions; the scheduler has not answered to the first one yet."""
    ordered: float = 0.0
    """When those were ordered, seconds since the epoch."""
    ordered_at: Mapping[str, float] = field(default_factory=dict)
    """The same of each job in :attr:`starting`, and maybe of others."""
    unready_since: Mapping[str, float] = field(default_factory=dict)
    """Since when jobs are seen running without a worker that is ready, seconds since the epoch."""
    released: Mapping[str, float] = field(default_factory=dict)
    """Jobs that were told to end and are still there: when they were told last, seconds since the epoch."""
    deferred_since: float = 0.0
    deferred_until: float = 0.0
    """Until when jobs that wait in the queue were told to stay there, seconds since the epoch."""

    @property
    def jobs(self) -> tuple[StandbyJob, ...]:
        """Our standby jobs, as last seen."""
        return self.capacity.jobs if self.capacity is not None else ()

    @property
    def unseen(self) -> tuple[str, ...]:
        """Jobs that were submitted since the last look."""
        seen = {job.job_id for job in self.jobs} | self.overdue
        return tuple(job for job in self.starting if job not in seen)

    def apply(self, record: Record) -> StandbyPool:
        """Fold one record in: a job that has come to have a worker, or is known to have failed, starts no more."""
        if isinstance(record, LifeBegan | StartFailed):
            starting = {job: partition for job, partition in self.starting.items() if job != record.job_id}
            return replace(self, starting=starting)
        return self


@dataclass(frozen=True)
class Handover:
    """The guaranteed job's time limit and its successor job."""

    job: GuaranteedJob | None = None
    """As last seen; None: not yet, or the run has no successors."""
    submitting: bool = False
    tries: int = 0
    refused: str = ""
    """Why the last one that was asked for was refused, if it was."""
    ask_again: float = 0.0
    """When another one is asked for after that, seconds since the epoch."""
    unseen: bool = False
    """Slurm was not asked since what there is: only its answer may have been lost, and the successor is there."""

    @property
    def successor(self) -> str:
        """Id of the successor job; empty: there is none."""
        return self.job.successor.job_id if self.job is not None and self.job.successor is not None else ""


@dataclass(frozen=True)
class Vigil:
    """What is seen of training's progress, and of workers that may be dead."""

    hung_up: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Workers whose connection is closed: since when, and when that was heard; seconds since the epoch."""
    at: tuple[int, int] = (-2, -1)
    """Generation and step of the run when it was last looked at."""
    validated: int = -1
    """Samples done of the validation that training stood for then; -1: for none."""
    moved: float = 0.0
    """When that was first seen, or when training last had a reason to stand."""
    due: float = 0.0
    """Since when steps have been due, as far as the coordinator has looked."""
    looked: float = 0.0
    """When the coordinator last looked."""
    hangs: int = 0
    """How often a world was broken because all of it computed and none of it completed a step."""
    empty: frozenset[str] = frozenset()
    """Places of guaranteed workers in which none is started again."""


@dataclass(frozen=True)
class Planning:
    """When the policy looks at the run again by itself, and what it said last."""

    look_again: float | None = None
    """Seconds since the epoch; None: only when something changes."""
    told: PolicyDecided | None = None
    """The last decision that the event log has; None: this coordinator has written none."""


@dataclass(frozen=True)
class RunState:
    """Everything that :func:`liver_slurm.coordinator.core.step.step` decides from."""

    settings: Settings
    now: float
    """Time of the last input, seconds since the epoch."""
    lifecycle: Lifecycle
    interruption: Interruption = Interruption()
    membership: Membership = field(default_factory=Membership)
    world: WorldState = field(default_factory=WorldState)
    damage: Damage = field(default_factory=Damage)
    vigil: Vigil = field(default_factory=Vigil)
    barriers: StepBarriers = field(default_factory=StepBarriers)
    resizes: ResizeQueue = field(default_factory=ResizeQueue)
    standbys: StandbyPool = field(default_factory=StandbyPool)
    handover: Handover = Handover()
    release: NodeRelease = field(default_factory=NodeRelease)
    history: History = field(default_factory=History)
    planning: Planning = Planning()

    replan: bool = True
    """Something changed that the policy should look at."""
    reason: str = ""
    """Why the run is as it is: the last decision's reason, for people."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Messages that changed nothing, by kind."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Why lines of the run's files wait in a process, by process; from the coordinator's shell, for people."""
    story: tuple[Any, ...] = field(default=(), compare=False, repr=False)
    """The last inputs, records and changes of phase, for :class:`~.transition.InvalidTransition`."""

    @property
    def phase(self) -> Phase:
        """The phase as the status document tells it: the reconfiguration's while the run starts or trains."""
        run, reconfiguration = self.lifecycle.phase, self.world.phase
        if run is RunPhase.TRAINING:
            return reconfiguration
        if run is RunPhase.STARTING and reconfiguration is not ReconfigurationPhase.STEADY:
            return reconfiguration
        return run

    @property
    def over(self) -> bool:
        """The outcome is decided; only good-byes are left."""
        return self.lifecycle.phase.over

    @property
    def how_to_continue(self) -> str:
        """What a user can do about a run that has ended, for the end of a message."""
        if self.settings.has_checkpoint or self.barriers.saved:
            return f"continue from the newest checkpoint: {self.settings.how_to_resume}"
        return "there is no checkpoint to continue from"

    @property
    def steady(self) -> bool:
        """The live world trains, and no other is on its way."""
        return self.phase is ReconfigurationPhase.STEADY

    @property
    def step(self) -> int:
        """Completed optimizer steps of the run, as far as the coordinator has heard."""
        live, (generation, step) = self.world.live, self.vigil.at
        seen = step if generation == self.generation else 0  # of members that are lost by now
        return max([live.step if live else self.settings.start_step, seen, *(worker.step for worker in self.members)])

    @property
    def generation(self) -> int:
        """Generation of the live world; -1: there is none yet."""
        return self.world.generation

    @property
    def members(self) -> list[Worker]:
        """Registered members of the live world, in rank order."""
        return self.membership.of(self.world.members)

    @property
    def validating(self) -> tuple[int, float] | None:
        """How far the validation is that training stands for: samples done, and seconds left; None: it does not."""
        if not self.settings.config.validation.wanted:
            return None
        step = self.step
        return max((one.validating for one in self.members if one.validating and one.step == step), default=None)

    @property
    def step_seconds(self) -> float:
        """Duration of one step in the live world; 0.0: not known yet."""
        return max((worker.step_seconds for worker in self.members), default=0.0)

    @property
    def own_workers(self) -> list[Worker]:
        """Guaranteed workers of the job that this coordinator belongs to."""
        return self.membership.of_job(self.settings.job_id, "live")

    def apply(self, record: Record) -> RunState:
        """Fold one record of the journal into every part."""
        patience = self.settings.config.job.prepare_timeout
        return replace(
            self,
            settings=self.settings.apply(record),
            world=self.world.apply(record, self.now, patience),
            damage=self.damage.apply(record, self.generation, self.world.processes),
            barriers=self.barriers.apply(record, self.world.members),
            resizes=self.resizes.apply(record),
            release=self.release.apply(record, self.settings.job_id),
            history=self.history.apply(record),
            standbys=self.standbys.apply(record),
        )


class Part(NamedTuple):
    """Where a part of the state is, and who writes it."""

    field: str
    """Of :class:`RunState`."""
    owner: str
    """The one module of the core that writes it; see :class:`~.transition.Writer`."""


PARTS: dict[type[Any], Part] = {
    Lifecycle: Part("lifecycle", "lifecycle"),
    Interruption: Part("interruption", "guaranteed_job"),
    Membership: Part("membership", "membership"),
    WorldState: Part("world", "reconfiguration"),
    Damage: Part("damage", "failure_recovery"),
    Vigil: Part("vigil", "detection"),
    StepBarriers: Part("barriers", "step_barrier"),
    ResizeQueue: Part("resizes", "resize_queue"),
    StandbyPool: Part("standbys", "standby_scaling"),
    Handover: Part("handover", "guaranteed_job"),
    NodeRelease: Part("release", "node_release"),
    History: Part("history", "history"),
    Planning: Part("planning", "planning"),
}
