"""Standby scaling: carries out which standby jobs to start and which to end."""

from __future__ import annotations

from liver_slurm.base.frozen import replace
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.units import standby_units, workers_per_job
from liver_slurm.coordinator.core import guaranteed_job, history, membership
from liver_slurm.coordinator.core.io import CapacitySeen, Defer, Launch, Launched, LaunchRefused, Release
from liver_slurm.coordinator.core.records import StandbyLaunched, StartFailed
from liver_slurm.coordinator.core.state import RunPhase, RunState, StandbyPool
from liver_slurm.coordinator.core.transition import (
    CapacityObserved,
    EvictionChanged,
    Transition,
    WorkerLost,
    WorldCommitted,
    Writer,
)
from liver_slurm.policy.standby_scaling import View, decide
from liver_slurm.policy.survival import failed_in_a_row, failing
from liver_slurm.rundir import events
from liver_slurm.scheduler.ports import CapacitySnapshot

LAUNCH_RETRY = 30.0
"""Seconds until standby jobs are started again after the scheduler refused."""

APART = 5.0
"""Seconds for which jobs that wait in the queue stay there, from a notice or the leave that follows on.

Slurm takes no further job for one that it has taken jobs for until KillWait and MessageTimeout are over, 40 s by
default: if others are given the nodes meanwhile, it waits for so long. Where 14 jobs a minute took nodes back, 8 s cost
4 to 5 % of the idle time.
"""

_write = Writer(StandbyPool, __name__)


def observe(t: Transition, given: CapacitySeen) -> None:
    """Note one look at the standby jobs and the capacity for more."""
    before = t.state.standbys.capacity
    _write(t, replace(t.state.standbys, capacity=given.capacity))
    if given.capacity.blind is None:
        _tell_changes(t, before, given.capacity)
        _note_failures(t, before, given.capacity)
        t.signal(CapacityObserved(before, given.capacity))


def _tell_changes(t: Transition, before: CapacitySnapshot | None, now: CapacitySnapshot) -> None:
    """Note in the event log what is different from the last look: a ledger of the run has no other source for it."""
    sizes = tuple(workers_per_job(unit) for unit in standby_units(t.state.settings.config.standby))
    known = {job.job_id: job for job in before.jobs} if before is not None else {}
    for job in now.jobs:
        last = known.pop(job.job_id, None)
        if last is None or (last.state, last.nodes) != (job.state, job.nodes):
            workers = sizes[min(job.unit, len(sizes) - 1)]
            t.emit(
                events.StandbyJobChanged(
                    job_id=job.job_id, state=job.state, partition=job.partition, workers=workers, nodes=job.nodes
                )
            )
    for job in known.values():
        t.emit(events.StandbyJobChanged(job_id=job.job_id, state="gone", partition=job.partition))
    free = _room(now, sizes)
    if before is None or free != _room(before, sizes):
        t.emit(events.CapacityChanged(workers=free))


def _note_failures(t: Transition, before: CapacitySnapshot | None, now: CapacitySnapshot) -> None:
    """Record which jobs are gone without a worker of theirs having been ready, and not by our doing.

    Each look would start them again; :func:`liver_slurm.policy.survival.failing` says how long not to. The first look
    after a job was submitted may have been under way then, so one that it does not find is only overdue.
    """
    pool, known = t.state.standbys, {job.job_id for job in (before.jobs if before is not None else ())}
    missing = pool.starting.keys() - {job.job_id for job in now.jobs}
    gone = {job for job in missing if job in known or job in pool.overdue}
    lived = {span.job_id for span in t.state.history.spans}
    for job, partition in pool.starting.items():
        if job in gone and job not in lived:
            _failed(t, job, partition)
    starting = {job: partition for job, partition in pool.starting.items() if job not in gone}
    _write(t, replace(t.state.standbys, starting=starting, overdue=frozenset(missing - gone)))


def _failed(t: Transition, job: str, partition: str) -> None:
    t.journal(StartFailed(job_id=job, partition=partition, time=t.now))
    spans, back_off = t.state.history.spans, t.state.settings.config.standby.back_off
    until, _ = failing(spans, t.now, back_off).get(partition, (t.now, 0))
    count = failed_in_a_row(spans, partition)
    t.emit(events.StandbyFailed(job_id=job, partition=partition, in_a_row=count, alone_s=until - t.now))


def room(seen: CapacitySnapshot, config: JobConfig) -> int:
    """Count the workers that would start at once in all partitions, of the unit that brings the most in each."""
    return sum(_room(seen, tuple(workers_per_job(unit) for unit in standby_units(config.standby))).values())


def _room(seen: CapacitySnapshot, sizes: tuple[int, ...]) -> dict[str, int]:
    """Count the workers that would start at once in each partition, of the unit that brings the most."""
    found: dict[str, int] = {}
    for place in seen.room:
        workers = place.jobs * sizes[min(place.unit, len(sizes) - 1)]
        found[place.partition] = max(found.get(place.partition, 0), workers)
    return found


def launched(t: Transition, given: Launched) -> None:
    """Note which jobs are ours, for coordinators to come; one that came after a notice stays in the queue as others."""
    t.journal(StandbyLaunched(job_ids=given.job_ids, unit=given.unit))
    pool = t.state.standbys
    starting = {**pool.starting, **dict.fromkeys(given.job_ids, given.partition)}
    _write(t, replace(pool, starting=starting))
    if t.now < pool.deferred_until:
        t.actions.append(Defer(given.job_ids, pool.deferred_until - t.now))


def launch_refused(t: Transition, given: LaunchRefused) -> None:
    """Wait before standby jobs are started again."""
    _write(t, replace(t.state.standbys, launch_after=t.now + LAUNCH_RETRY))
    t.emit(events.LaunchRefused(reason=given.error))


def scale(t: Transition, _: CapacitySeen) -> None:
    """Start and end standby jobs as the scheduler's answer suggests."""
    state = t.state
    if state.lifecycle.phase not in (RunPhase.STARTING, RunPhase.TRAINING) or state.interruption.reason:
        return
    decision, reason = decide(view(state), state.settings.config)
    _write(t, replace(state.standbys, useless_since=decision.useless_since))
    for job_id in decision.end:
        _release(t, job_id, reason)
    if t.now < state.standbys.launch_after:
        return
    after = max(0.0, state.standbys.deferred_until - t.now)
    for order in decision.start:
        t.actions.append(Launch(order.count, order.unit, order.partition, after))
        t.emit(events.StandbyLaunch(count=order.count, unit=order.unit, partition=order.partition, reason=reason))


def view(state: RunState) -> View:
    """Build the facts that :func:`decide` needs."""
    world, pool = state.world, state.standbys
    assert pool.capacity is not None
    apart = guaranteed_job.kept_out(state)  # the successor's workers take the place of ours
    guaranteed = [one for one in state.membership.with_role("live") if one.eviction is None and one.name not in apart]
    standbys = state.membership.with_role("standby")
    members = {*world.members, *world.next_members}
    return View(
        now=state.now,
        capacity=pool.capacity,
        guaranteed=state.settings.live_workers if world.live is None else len(guaranteed),
        asked=max((goal.workers for goal in state.resizes.goals), default=0),
        size_ceiling=state.resizes.size_ceiling,
        busy=frozenset(worker.job_id for worker in standbys if worker.name in members),
        going=frozenset(worker.job_id for worker in standbys if not worker.staying),
        spans=state.history.spans,
        useless_since=pool.useless_since,
        left_alone=history.left_alone(state.history, state.now),
    )


def leave(t: Transition, jobs: tuple[str, ...], reason: str) -> None:
    """Give standby jobs back that the policy does not want, unless a worker of theirs is in a world by now."""
    members = t.state.membership.of((*t.state.world.members, *t.state.world.next_members))
    busy = {worker.job_id for worker in members}
    for job_id in jobs:
        if job_id not in busy:
            _release(t, job_id, reason)


def eviction_changed(t: Transition, news: EvictionChanged) -> None:
    """Keep what waits in the queue off the nodes that others want back."""
    if news.worker.role == "standby" and news.now is not None and news.now.kind in ("signal", "preemption"):
        _make_way(t)


def world_committed(t: Transition, _: WorldCommitted) -> None:
    """Do so once more where the leave took long: nodes become free only now, one after another."""
    standbys = t.state.membership.with_role("standby")
    if any(one.eviction is not None and one.name not in t.state.world.members for one in standbys):
        _make_way(t)


def _make_way(t: Transition) -> None:
    """Let waiting jobs not start for a while.

    Slurm frees the nodes of the jobs that it takes one by one, and while the last of them is not free, the job that
    wants them all cannot start. Slurm's backfill plans it on nodes of its own choice, which are others, so that jobs of
    ours could start on those: then it would have to take them as well, and wait for them.
    """
    pool = t.state.standbys
    if t.now < pool.deferred_until - APART / 2:
        return
    _write(t, replace(pool, deferred_until=t.now + APART))
    seen = (job.job_id for job in pool.jobs if job.state == "pending" and not job.nodes)
    if waiting := tuple(dict.fromkeys((*seen, *pool.unseen))):
        t.actions.append(Defer(waiting, APART))


def _release(t: Transition, job_id: str, reason: str) -> None:
    """End a standby job: its workers are told to leave, and the scheduler ends what is left of it."""
    t.emit(events.StandbyRelease(job_id=job_id, reason=reason))
    pool = t.state.standbys
    _write(t, replace(pool, starting={job: place for job, place in pool.starting.items() if job != job_id}))
    for worker in t.state.membership.of_job(job_id, "standby"):
        if not worker.dismissed:
            membership.dismiss(t, worker.name, "of no use any more")
    t.actions.append(Release(job_id))


def worker_lost(t: Transition, news: WorkerLost) -> None:
    """End the standby job of a lost worker if that was its last one: it would only hold nodes."""
    job_id = news.worker.job_id
    if news.worker.role != "standby" or any(one.job_id == job_id for one in t.state.membership.workers.values()):
        return
    if any(job.job_id == job_id for job in t.state.standbys.jobs):
        t.actions.append(Release(job_id))
