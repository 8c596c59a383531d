"""Which workers and which layout next. Pure: a snapshot and the job file in, a decision and its reason out.

What must be done is done whatever the policy: an explicit request comes first, and a world that loses members becomes
the best one of those that stay. A policy decides the rest: whether the world is worth resizing for the workers there
are. Its answer is checked, so a policy of somebody else's can neither break an invariant nor the run.
"""

from __future__ import annotations

import importlib
import pkgutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points

from liver_slurm.base.errors import BadInput, first_line
from liver_slurm.config.layouts import refused
from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy.api import (
    Change,
    Decision,
    Fulfilled,
    Leave,
    Policy,
    Snapshot,
    Stay,
    Wait,
    allowed,
    offered_jobs,
    pick,
)
from liver_slurm.policy.cost_model import choose
from liver_slurm.policy.types import ResizeGoal

GROUP = "liver_slurm.policies"
"""Entry-point group in which other packages name their policies."""
OWN = "liver_slurm.plugins.policies"
"""Package of the policies that come with the product."""
EAGER = "greedy"
"""The policy that takes whatever is on offer."""
_GIVEN: dict[str, Policy] = {}


def decide(snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
    """Return what is to be done, unless the very same thing has just failed."""
    decision, reason = _obliged(snapshot, config) or _chosen(config.standby.policy, snapshot, config)
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
    """Return what no policy may change; None: the policy decides."""
    if snapshot.due is not None and not snapshot.leaving:
        return _fulfil(snapshot.due, snapshot, config)
    if not snapshot.leaving and not snapshot.automatic:
        return _as_it_was(snapshot) or (Stay(), "resized only on request")
    workers = len(snapshot.pool)
    layouts = allowed(snapshot.pinned, config, workers)
    if not layouts:
        return Stay(), f"no allowed layout for the {workers} workers that stay"
    if not snapshot.leaving:
        return None
    layout, why = choose(layouts, config, snapshot.live, lambda one: pick(snapshot, one.size))
    names = ", ".join(sorted(snapshot.leaving))
    return Change(layout, pick(snapshot, layout.size), "notice"), f"{names} will go away; {why}"


def _as_it_was(snapshot: Snapshot) -> tuple[Decision, str] | None:
    """Return to the first world's layout when there are workers for it again; None: there are not, or it is that."""
    first = snapshot.first
    if first is None or not snapshot.live.layout.size < first.size <= len(snapshot.pool):
        return None
    return Change(first, pick(snapshot, first.size), "capacity"), f"{first} again: there are workers for it"


def on_offer(snapshot: Snapshot, config: JobConfig) -> Change | None:
    """Return the growth by standby jobs that policy ``greedy`` would begin now; None: nothing is on offer."""
    if set(snapshot.ready) <= snapshot.guaranteed or _obliged(snapshot, config) is not None:
        return None
    decision, _ = _chosen(EAGER, snapshot, config)
    return decision if isinstance(decision, Change) and offered_jobs(snapshot, decision) else None


def _chosen(name: str, snapshot: Snapshot, config: JobConfig) -> tuple[Decision, str]:
    """Return a policy's word, if it can be followed."""
    try:
        decision, reason = (_GIVEN.get(name) or named(name))(snapshot, config)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's code: training goes on without it
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Stay(), f"policy {name} failed: {first_line(error)} ({last.filename}:{last.lineno})"
    if isinstance(decision, Change) and (fault := _fault(decision, snapshot, config)) is not None:
        return Stay(), f"policy {name} wanted a world that cannot be: {fault}"
    if isinstance(decision, Leave):
        idle = {snapshot.job_of.get(worker, worker) for worker in set(snapshot.ready) - snapshot.guaranteed}
        if strangers := sorted(set(decision.jobs) - idle):
            return Stay(), f"policy {name} wanted to give back jobs that are not on offer: {', '.join(strangers)}"
    if not isinstance(decision, Change | Leave | Wait | Stay):
        return Stay(), f"policy {name} returned {type(decision).__name__}, not Stay, Wait, Change or Leave"
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


@contextmanager
def given(name: str, policy: Policy) -> Iterator[None]:
    """Let a job file name this policy for the block: one of a simulation, which may know what no run knows."""
    _GIVEN[name] = policy
    try:
        yield
    finally:
        del _GIVEN[name]


@cache
def named(name: str) -> Policy:
    """Return the policy that a job file names: an entry point of an installed package, or a module of plugins/policies.

    Raises:
        BadInput: there is none of that name, or it cannot be loaded.
    """
    theirs = {point.name: point for point in entry_points(group=GROUP)}
    ours = _own_modules()
    if name in theirs:
        try:
            found = theirs[name].load()
        except (Exception, SystemExit) as error:  # somebody else's module may raise anything when it is imported
            value = theirs[name].value
            raise BadInput(f"standby.policy: {name!r} ({value}) cannot be loaded: {first_line(error)}") from error
    elif name in ours:
        found = importlib.import_module(ours[name]).policy
    else:
        known = ", ".join(sorted({*theirs, *ours}))
        raise BadInput(f"standby.policy: there is no policy {name!r}; known: {known}")
    if not callable(found):
        raise BadInput(f"standby.policy: {name!r} is not a function but {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def check(name: str, config: JobConfig) -> None:
    """Find out before a run begins whether it can have a policy: it can be loaded, and so can what it needs.

    A policy of ours that needs something has a function ``check`` of the job file beside it.

    Raises:
        BadInput: it cannot.
    """
    module = named(name).__module__
    if module.startswith(f"{OWN}."):
        getattr(importlib.import_module(module), "check", lambda _: None)(config)


def _own_modules() -> dict[str, str]:
    """Name of each policy that comes with the product, and its module."""
    # Found by name, as those of other packages are: policies know this package, and this package none of them.
    found = pkgutil.iter_modules(importlib.import_module(OWN).__path__)
    return {one.name.replace("_", "-"): f"{OWN}.{one.name}" for one in found}


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
    """Return why a request for ``layout`` cannot be granted whatever workers there are; None: it can."""
    limit = config.elastic.max_workers
    if limit is not None and layout.size > limit:
        return f"{layout} has {layout.size} workers, more than elastic.max_workers {limit}"
    reason = refused(layout, config)
    return f"{layout} is impossible: {reason}" if reason else None
