"""Which workers and which layout next. Pure: a snapshot and the job file in, a decision and its reason out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Union

from liver_slurm.config.layouts import feasible_layouts, impossible
from liver_slurm.config.schema import JobConfig
from liver_slurm.coordinator.layout_choice import TIE, choose, estimate
from liver_slurm.coordinator.state import Backoff, ResizeGoal, World
from liver_slurm.errors import BadInput
from liver_slurm.state.layout import Layout


@dataclass(frozen=True)
class Snapshot:
    """What a policy may look at."""

    now: float
    live: World
    leaving: frozenset[str]
    """Members of the live world that will go away."""
    ready: tuple[str, ...]
    """Workers in no world that could join at once, in order of arrival."""
    guaranteed: frozenset[str]
    """Workers that nobody takes away: those of the live job."""
    last_arrival: float
    """When the newest of ``ready`` became so, seconds since the epoch."""
    due: ResizeGoal | None = None
    """An explicit request whose turn it is."""
    pinned: ResizeGoal | None = None
    """The last explicit request that was fulfilled: no growing beyond it."""
    automatic: bool = True
    """Grow without being asked."""
    backoff: Backoff | None = None


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
    """What the job's policy says, unless the very same thing has just failed."""
    decision, reason = named(config.standby.policy)(snapshot, config)
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


def greedy(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
    """Take whatever makes a step faster, give up whatever is asked back; explicit requests come first."""
    live, due = snapshot.live, snapshot.due
    pool = _pool(snapshot)
    if due is not None and not snapshot.leaving:
        return _fulfil(due, snapshot, config, pool)
    if not snapshot.leaving and not snapshot.automatic:
        return Stay(), "resized only on request"
    layouts = _allowed(snapshot.pinned, config, len(pool))
    if not layouts:
        return Stay(), f"no allowed layout for the {len(pool)} workers that stay"
    layout, why = choose(layouts, config, live, lambda one: pick(snapshot, one.size))
    if snapshot.leaving:
        names = ", ".join(sorted(snapshot.leaving))
        return Change(layout, pick(snapshot, layout.size), "notice"), f"{names} will go away; {why}"
    if layout == live.layout:
        return Stay(), why
    if layout.size == live.layout.size and live.layout in layouts:
        # An estimate is no reason to leave a layout that somebody chose, or that trains already.
        return Stay(), f"{live.layout} has as many workers as {layout}"
    if live.layout in layouts and estimate(live.layout, config) <= TIE * estimate(layout, config):
        return Stay(), f"{live.layout} is as fast as {layout}"
    settled = snapshot.last_arrival + config.elastic.settle
    if snapshot.now < settled:
        return Wait(settled), f"{len(pool)} workers; more may be arriving"
    return Change(layout, pick(snapshot, layout.size), "capacity"), f"{len(pool)} workers; {why}"


POLICIES: dict[str, Policy] = {"greedy": greedy}


def named(name: str) -> Policy:
    """The policy that a job file names.

    Raises:
        BadInput: there is none of that name.
    """
    try:
        return POLICIES[name]
    except KeyError:
        raise BadInput(f"standby.policy: there is no policy {name!r}; known: {', '.join(sorted(POLICIES))}") from None


def pick(snapshot: Snapshot, size: int) -> tuple[str, ...]:
    """Members of the next world: survivors in their relative order, then joiners.

    Guaranteed workers are taken first, then members of the live world, then others in order of arrival.
    """
    pool = _pool(snapshot)
    chosen = set(sorted(pool, key=lambda worker: worker not in snapshot.guaranteed)[:size])  # the sort is stable
    return tuple(worker for worker in pool if worker in chosen)


def _pool(snapshot: Snapshot) -> list[str]:
    staying = [member for member in snapshot.live.members if member not in snapshot.leaving]
    joiners = sorted(snapshot.ready, key=lambda worker: worker not in snapshot.guaranteed)
    return staying + joiners


def _allowed(goal: ResizeGoal | None, config: JobConfig, workers: int) -> list[Layout]:
    if goal is None:
        return feasible_layouts(config, workers)
    if goal.layout is not None and goal.layout.size <= workers:
        return [goal.layout]
    return feasible_layouts(config, min(workers, goal.layout.size if goal.layout else goal.workers))


def _fulfil(goal: ResizeGoal, snapshot: Snapshot, config: JobConfig, pool: list[str]) -> tuple[Decision, str]:
    size = goal.layout.size if goal.layout else goal.workers
    if len(pool) < size:
        wanted = goal.layout or f"{size} workers"
        return Stay(), f"resize to {wanted} waits for workers: {len(pool)} of {size} are ready"
    layouts = _allowed(goal, config, len(pool))
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
