"""Which workers and which layout next. Pure: a snapshot and the job file in, a decision and its reason out.

What must be done is done whatever the policy: an explicit request comes first, and a world that loses members becomes
the best one of those that stay. A policy decides the rest: whether the world is worth resizing for the workers there
are. Its answer is checked, so a policy of somebody else's can neither break an invariant nor the run.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Literal, Union

from liver_slurm.config.layouts import feasible_layouts, impossible
from liver_slurm.config.schema import JobConfig
from liver_slurm.coordinator.layout_choice import choose
from liver_slurm.coordinator.lives import Life
from liver_slurm.coordinator.state import Backoff, Measured, ResizeGoal, World
from liver_slurm.errors import BadInput
from liver_slurm.state.layout import Layout

GROUP = "liver_slurm.policies"
"""Entry-point group in which other packages name their policies."""


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
    """Workers that nobody takes away: those of the live job."""
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
    backoff: Backoff | None = None
    arrived: Mapping[str, float] = field(default_factory=dict)
    """When each worker of ``ready`` became so."""
    unit_of: Mapping[str, str] = field(default_factory=dict)
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


Decision = Union[Stay, Fulfilled, Wait, Change]  # noqa: UP007
Policy = Callable[[Snapshot, JobConfig], tuple[Decision, str]]


def decide(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
    """What is to be done, unless the very same thing has just failed."""
    decision, reason = _obliged(snapshot, config) or _chosen(snapshot, config)
    backoff = snapshot.backoff
    if (
        isinstance(decision, Change)
        and backoff is not None
        and (decision.layout, set(decision.members)) == (backoff.layout, set(backoff.members))
        and snapshot.now < backoff.until
    ):
        wait = backoff.until - snapshot.now
        return Wait(backoff.until), f"{reason}; failed {backoff.failures} times, tried again in {wait:.1f} s"
    return decision, reason


def _obliged(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str] | None:
    """What no policy may change; None: the policy decides."""
    if snapshot.due is not None and not snapshot.leaving:
        return _fulfil(snapshot.due, snapshot, config)
    if not snapshot.leaving and not snapshot.automatic:
        return Stay(), "resized only on request"
    workers = len(snapshot.pool)
    layouts = allowed(snapshot.pinned, config, workers)
    if not layouts:
        return Stay(), f"no allowed layout for the {workers} workers that stay"
    if not snapshot.leaving:
        return None
    layout, why = choose(layouts, config, snapshot.live, lambda one: pick(snapshot, one.size))
    names = ", ".join(sorted(snapshot.leaving))
    return Change(layout, pick(snapshot, layout.size), "notice"), f"{names} will go away; {why}"


def _chosen(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
    """The policy's word, if it can be followed."""
    name = config.standby.policy
    try:
        decision, reason = named(name)(snapshot, config)
    except Exception as error:  # noqa: BLE001 - somebody else's code may raise anything; training goes on without it
        return Stay(), f"policy {name} failed: {type(error).__name__}: {error}"
    if isinstance(decision, Change) and (fault := _fault(decision, snapshot, config)) is not None:
        return Stay(), f"policy {name} wanted a world that cannot be: {fault}"
    if not isinstance(decision, Change | Wait | Stay):
        return Stay(), f"policy {name} returned {type(decision).__name__}, not Stay, Wait or Change"
    return decision, str(reason)


def _fault(change: Change, snapshot: Snapshot, config: JobConfig) -> str | None:
    layout, members = change.layout, change.members
    if strangers := sorted(set(members) - set(snapshot.pool)):
        return f"{', '.join(strangers)} cannot be in it"
    if len(set(members)) != layout.size or len(members) != layout.size:
        return f"{layout} has {layout.size} workers, not {len(members)}"
    if layout not in allowed(snapshot.pinned, config, len(snapshot.pool)):
        return f"{layout} is not allowed now"
    return None


@cache
def named(name: str) -> Policy:
    """The policy that a job file names: an entry point of an installed package, or a module of plugins/policies.

    Raises:
        BadInput: there is none of that name, or it cannot be loaded.
    """
    theirs = {point.name: point for point in entry_points(group=GROUP)}
    ours = _own_modules()
    if name in theirs:
        try:
            found = theirs[name].load()
        except Exception as error:  # somebody else's module may raise anything when it is imported
            value = theirs[name].value
            raise BadInput(
                f"standby.policy: {name!r} ({value}) cannot be loaded: {type(error).__name__}: {error}"
            ) from error
    elif name in ours:
        found = importlib.import_module(ours[name]).policy
    else:
        known = ", ".join(sorted({*theirs, *ours}))
        raise BadInput(f"standby.policy: there is no policy {name!r}; known: {known}")
    if not callable(found):
        raise BadInput(f"standby.policy: {name!r} is not a function but {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _own_modules() -> dict[str, str]:
    """Name of each policy that comes with the product, and its module."""
    from liver_slurm.plugins import policies

    found = pkgutil.iter_modules(policies.__path__)
    return {one.name.replace("_", "-"): f"{policies.__name__}.{one.name}" for one in found}


def pick(snapshot: Snapshot, size: int) -> tuple[str, ...]:
    """Members of the next world: survivors in their relative order, then joiners.

    Guaranteed workers are taken first, then members of the live world, then others in order of arrival.
    """
    pool = snapshot.pool
    # The sort is stable.
    order = sorted(pool, key=lambda worker: (worker not in snapshot.guaranteed, worker in snapshot.go_first))
    chosen = set(order[:size])
    return tuple(worker for worker in pool if worker in chosen)


def allowed(goal: ResizeGoal | None, config: JobConfig, workers: int) -> list[Layout]:
    """Layouts that a world of at most ``workers`` workers may take, bounded by an explicit request; largest first."""
    if goal is None:
        return feasible_layouts(config, workers)
    if goal.layout is not None and goal.layout.size <= workers:
        return [goal.layout]
    return feasible_layouts(config, min(workers, goal.layout.size if goal.layout else goal.workers))


def _fulfil(goal: ResizeGoal, snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
    pool = snapshot.pool
    size = goal.layout.size if goal.layout else goal.workers
    if len(pool) < size:
        wanted = goal.layout or f"{size} workers"
        return Stay(), f"resize to {wanted} waits for workers: {len(pool)} of {size} are ready"
    layouts = allowed(goal, config, len(pool))
    if not layouts:
        return Stay(), f"no allowed layout for {size} workers"
    layout, why = choose(layouts, config, snapshot.live, lambda one: pick(snapshot, one.size))
    members = pick(snapshot, layout.size)
    if (layout, members) == (snapshot.live.layout, snapshot.live.members):
        return Fulfilled(), f"{layout} as requested"
    return Change(layout, members, "request"), f"requested; {why}" if goal.layout is None else "requested"


def why_impossible(layout: Layout, config: JobConfig) -> str | None:
    """Why a request for ``layout`` cannot be granted whatever workers there are; None: it can."""
    limit = config.elastic.max_workers
    if limit is not None and layout.size > limit:
        return f"{layout} has {layout.size} workers, more than elastic.max_workers {limit}"
    reason = impossible(layout, config.model, config.train)
    return f"{layout} is impossible: {reason}" if reason else None
