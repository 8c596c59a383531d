"""The interface of a policy: what it may look at, and what it may answer.

A policy is a function of a :class:`Snapshot` and the job file that returns a decision and its reason, a
sentence for people. Policies of other packages import this module, :mod:`liver_slurm.policy.cost_model`
and :mod:`liver_slurm.policy.survival`, and nothing else of the coordinator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Union

from liver_slurm.config.layouts import feasible_layouts
from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy.survival import Life
from liver_slurm.policy.types import Backoff, Measured, ResizeGoal


@dataclass(frozen=True)
class Snapshot:
    """What a policy may look at. Times are seconds since the epoch, durations seconds."""

    now: float
    live: World
    leaving: frozenset[str]
    """Members of the live world that will go away."""
    ready: tuple[str, ...]
    """Workers in no world that could join at once, in order of arrival."""
    guaranteed: frozenset[str]
    """Workers that nobody takes away: those of the guaranteed job."""
    last_arrival: float
    """When the newest of ``ready`` became so."""
    due: ResizeGoal | None = None
    """An explicit request whose turn it is."""
    go_first: frozenset[str] = frozenset()
    """Guaranteed workers that a due request leaves out before others, because their nodes can be given back."""
    pinned: ResizeGoal | None = None
    """The last explicit request that was fulfilled: no growing beyond it."""
    automatic: bool = True
    """Grow without being asked."""
    first: Layout | None = None
    """Layout of the run's first world, where nothing else says what is wanted: it is
    resized on request alone, and has had no request."""
    backoff: Backoff | None = None
    arrived: Mapping[str, float] = field(default_factory=dict)
    """When each worker of ``ready`` became so."""
    job_of: Mapping[str, str] = field(default_factory=dict)
    """Job of each worker of ``ready``: those of one job go away together."""
    live_since: float = 0.0
    """When the last reconfiguration was over; 0.0: there was none."""
    step_seconds: float = 0.0
    """Duration of one step in the live world; 0.0: not known yet."""
    steps_left: int = 0
    """Steps that the run has still to train."""
    measured: tuple[Measured, ...] = ()
    """What past reconfigurations took, oldest first."""
    lives: tuple[Life, ...] = ()
    """How long standby jobs have been there, those that still are included, oldest first."""
    run_id: str = ""
    unsaved_steps: int = 0
    """Steps since the newest checkpoint of which this coordinator knows."""
    limit: float | None = None
    """When the time limit ends the guaranteed job; None: not known, or it has none."""
    room: int | None = None
    """Workers of standby jobs that would start at once; None: the scheduler was not asked yet."""

    @property
    def pool(self) -> list[str]:
        """Workers that could be in the next world: staying members in rank order, then joiners, guaranteed first."""
        staying = [member for member in self.live.members if member not in self.leaving]
        return staying + sorted(self.ready, key=lambda worker: worker not in self.guaranteed)


@dataclass(frozen=True)
class Stay:
    """Leave the live world as it is."""


@dataclass(frozen=True)
class Fulfilled:
    """The live world is already what the due request asks for."""


@dataclass(frozen=True)
class Wait:
    """Look again at ``until``, seconds since the epoch."""

    until: float


@dataclass(frozen=True)
class Change:
    """Make this the next world."""

    layout: Layout
    members: tuple[str, ...]
    cause: Literal["notice", "request", "capacity"]
    propensity: float | None = None
    """Chance that the policy gave this; None: it states none. With one, the decision is logged as that on an offer."""


@dataclass(frozen=True)
class Leave:
    """Give standby jobs that are on offer back, and let their partitions rest."""

    jobs: tuple[str, ...]
    """Ids; none of them has a worker in the live world."""
    until: float
    """When standby jobs may be started there again, seconds since the epoch."""
    propensity: float | None = None
    """As of :class:`Change`."""


Decision = Union[Stay, Fulfilled, Wait, Change, Leave]  # noqa: UP007


Policy = Callable[[Snapshot, JobConfig], tuple[Decision, str]]


def pick(snapshot: Snapshot, size: int) -> tuple[str, ...]:
    """Return the members of the next world: survivors in their relative order, then joiners.

    Guaranteed workers are taken first, then members of the live world, then others in order of arrival.
    """
    pool = snapshot.pool
    # The sort is stable.
    order = sorted(pool, key=lambda worker: (worker not in snapshot.guaranteed, worker in snapshot.go_first))
    chosen = set(order[:size])
    return tuple(worker for worker in pool if worker in chosen)


def offered_jobs(snapshot: Snapshot, change: Change) -> tuple[str, ...]:
    """Return the standby jobs that a change adds workers of, sorted; those of the guaranteed job are nobody's offer."""
    added = set(change.members) & set(snapshot.ready) - snapshot.guaranteed
    return tuple(sorted({snapshot.job_of.get(worker, worker) for worker in added}))


def allowed(goal: ResizeGoal | None, config: JobConfig, workers: int) -> list[Layout]:
    """Return the layouts that a world of at most ``workers`` workers may take, bounded by an explicit request; largest
    first."""
    if goal is None:
        return feasible_layouts(config, workers)
    if goal.layout is not None and goal.layout.size <= workers:
        return [goal.layout]
    return feasible_layouts(config, min(workers, goal.layout.size if goal.layout else goal.workers))
