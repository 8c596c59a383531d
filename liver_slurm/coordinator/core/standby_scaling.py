"""Standby scaling: carries out which standby jobs to start and which to end."""

from __future__ import annotations

from collections.abc import Sequence

from liver_slurm.base.frozen import replace
from liver_slurm.config.units import standby_units, warning_seconds, workers_per_job
from liver_slurm.coordinator.core import guaranteed_job, history, membership
from liver_slurm.coordinator.core.io import CapacitySeen, Defer, Launch, Launched, LaunchRefused, Release
from liver_slurm.coordinator.core.records import StandbyLaunched, StartFailed
from liver_slurm.coordinator.core.signals import (
    CapacityObserved,
    EvictionChanged,
    Registered,
    WorkersLost,
    WorldCommitted,
)
from liver_slurm.coordinator.core.state import RunPhase, RunState, StandbyPool
from liver_slurm.coordinator.core.transition import Transition, Writer
from liver_slurm.coordinator.core.workers import Worker
from liver_slurm.policy.standby_scaling import Order, View, decide, room_by_partition, still_wanted
from liver_slurm.policy.survival import failed_in_a_row, failing
from liver_slurm.rundir import events
from liver_slurm.rundir.worker_names import of_job
from liver_slurm.scheduler.ports import CapacitySnapshot, StandbyJob

LAUNCH_RETRY = 30.0
"""Seconds until standby jobs are started again after the scheduler refused."""
RELEASE_RETRY = 60.0
"""Seconds after which the scheduler is told once more to end a job that is still there: it may not have heard."""

APART = 5.0
"""Seconds for which jobs that wait in the queue stay there, from a notice or the leave that follows on.

Slurm takes no further job for one that it has taken jobs for until KillWait and MessageTimeout are over, 40 s by
default: if others are given the nodes meanwhile, it waits for so long. Where 14 jobs a minute took nodes back, 8 s cost
4 to 5 % of the idle time.
"""

STRETCH = 6 * APART
"""Seconds for which notices that follow each other keep the queue back at most. Then it is let go for :data:`APART` at
least, whatever comes: where notices never end, it would else never start a job."""

EARLY = 60.0
"""Seconds by which Slurm may warn of a time limit before it is due to."""

PORTION = 8
"""Jobs that the scheduler is asked for in one call. Between two of them it is looked at, jobs are released, and what
is submitted next stays in the queue if a notice has come."""

_write = Writer(StandbyPool, __name__)


def observe(t: Transition, given: CapacitySeen) -> None:
    """Note one look at the standby jobs and the capacity for more."""
    before = t.state.standbys.capacity
    _write(t, replace(t.state.standbys, capacity=given.capacity))
    if given.capacity.blind is None:
        _tell_changes(t, before, given.capacity)
        _note_failures(t, before, given.capacity)
        _note_there(t, given.capacity)
        _release_again(t, given.capacity)
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
    free = room_by_partition(now, sizes)
    if before is None or free != room_by_partition(before, sizes):
        t.emit(events.CapacityChanged(workers=free))


def _note_failures(t: Transition, before: CapacitySnapshot | None, now: CapacitySnapshot) -> None:
    """Record which jobs are gone without a worker of theirs having been ready, and not by our doing.

    Each look would start them again; :func:`liver_slurm.policy.survival.failing` says how long not to. The first look
    after a job was submitted may have been under way then, so one that it does not find is only overdue.
    """
    pool, known = t.state.standbys, {job.job_id: job for job in (before.jobs if before is not None else ())}
    missing = pool.starting.keys() - {job.job_id for job in now.jobs}
    gone = {job for job in missing if job in known or job in pool.overdue or job in now.over}
    for job, partition in pool.starting.items():
        if job in gone and _has_failed(known.get(job), now.over.get(job)):
            _failed(t, job, partition)
    starting = {job: partition for job, partition in pool.starting.items() if job not in gone}
    _write(t, replace(t.state.standbys, starting=starting, overdue=frozenset(missing - gone)))


def _has_failed(last: StandbyJob | None, how: str | None) -> bool:
    """Return whether a job failed that is over, given when it was last seen and how it ended; None: nobody knows."""
    if last is not None and last.notice is not None and last.notice.kind != "ending":
        return False
    if how is None:
        return last is None or last.state not in ("pending", "ending")  # else it may never have run, or was taken
    return how == "ended"


def _note_there(t: Transition, now: CapacitySnapshot) -> None:
    """Note since when jobs run without a worker that is ready, and which of those that were told to end have not."""
    pool, members = t.state.standbys, {*t.state.world.members, *t.state.world.next_names}
    standbys = t.state.membership.with_role("standby")
    ready = {worker.job_id for worker in standbys if worker.warm or worker.name in members}
    unready = [job.job_id for job in now.jobs if job.state == "running" and job.job_id not in ready]
    since = {job: pool.unready_since.get(job, t.now) for job in unready}
    there = {job.job_id for job in now.jobs}
    released = {job: told for job, told in pool.released.items() if job in there}
    _write(t, replace(pool, unready_since=since, released=released))


def _release_again(t: Transition, now: CapacitySnapshot) -> None:
    """Have the scheduler end jobs that go on though it was told to end them: each would hold its nodes to its limit."""
    for job in now.jobs:
        told = t.state.standbys.released.get(job.job_id, t.now)
        if job.state != "ending" and t.now - told >= RELEASE_RETRY:
            _end(t, job.job_id)


def _fails(t: Transition, job: str) -> None:
    """Record that a job has failed if no worker of it has ever been ready."""
    partition = t.state.standbys.starting.get(job)
    if partition is not None:
        _failed(t, job, partition)


def _failed(t: Transition, job: str, partition: str) -> None:
    ordered = t.state.standbys.ordered_at.get(job, 0.0)
    t.journal(StartFailed(job_id=job, partition=partition, time=t.now, ordered=ordered))
    spans, back_off = t.state.history.spans, t.state.settings.config.standby.back_off
    until, _ = failing(spans, t.now, back_off).get(partition, (t.now, 0))
    count = failed_in_a_row(spans, partition)
    t.emit(events.StandbyFailed(job_id=job, partition=partition, in_a_row=count, alone_s=until - t.now))


def launched(t: Transition, given: Launched) -> None:
    """Note which jobs are ours, for coordinators to come, and order the next ones.

    One that came after a notice stays in the queue as others.
    """
    if given.job_ids:
        t.journal(StandbyLaunched(job_ids=given.job_ids, unit=given.unit))
    pool = t.state.standbys
    starting = {**pool.starting, **dict.fromkeys(given.job_ids, given.partition)}
    ordered_at = {job: pool.ordered_at[job] for job in pool.starting if job in pool.ordered_at}
    ordered_at |= dict.fromkeys(given.job_ids, pool.ordered)
    _write(
        t,
        replace(pool, starting=starting, ordered_at=ordered_at, orders=pool.orders[1:] if _may_scale(t.state) else ()),
    )
    if given.job_ids and t.now < pool.deferred_until:
        t.actions.append(Defer(given.job_ids, pool.deferred_until))
    _launch_next(t)


def launch_refused(t: Transition, given: LaunchRefused) -> None:
    """Wait before standby jobs are started again."""
    _write(t, replace(t.state.standbys, launch_after=t.now + LAUNCH_RETRY, orders=()))
    t.emit(events.LaunchRefused(reason=given.error))


def _launch_next(t: Transition) -> None:
    pool = t.state.standbys
    for order in pool.orders[:1]:
        until = pool.deferred_until if t.now < pool.deferred_until else 0.0
        t.actions.append(Launch(order.count, order.unit, order.partition, until))


def _may_scale(state: RunState) -> bool:
    return state.lifecycle.phase in (RunPhase.STARTING, RunPhase.TRAINING) and not state.interruption.reason


def scale(t: Transition, _: CapacitySeen) -> None:
    """Start and end standby jobs as the scheduler's answer suggests."""
    state = t.state
    if not _may_scale(state):
        return
    decision, reason = decide(view(state), state.settings.config)
    _write(t, replace(state.standbys, useless_since=decision.useless_since))
    for job_id in decision.end:
        _release(t, job_id, reason)
    if state.standbys.capacity is not None and state.standbys.capacity.blind is None:
        _give_up_unready(t)
    pool = t.state.standbys
    if pool.orders:  # what they bring is not to be ordered twice
        _write(t, replace(pool, orders=still_wanted(pool.orders, decision.start)))
    elif t.now >= pool.launch_after and decision.start:
        _order(t, decision.start, reason)


def _order(t: Transition, wanted: Sequence[Order], reason: str) -> None:
    portions = tuple(
        replace(order, count=min(PORTION, order.count - ordered))
        for order in wanted
        for ordered in range(0, order.count, PORTION)
    )
    _write(t, replace(t.state.standbys, orders=portions, ordered=t.now))
    _launch_next(t)
    for order in wanted:
        t.emit(events.StandbyLaunch(count=order.count, unit=order.unit, partition=order.partition, reason=reason))


def _give_up_unready(t: Transition) -> None:
    """End jobs that have run for too long without a worker that is ready: they hold nodes and bring nothing."""
    limit = t.state.settings.config.job.start_timeout
    for job_id, since in t.state.standbys.unready_since.items():
        if t.now - since > limit and job_id not in t.state.standbys.released:
            _fails(t, job_id)
            _release(t, job_id, f"no worker of it was ready within {limit:g} s")


def view(state: RunState) -> View:
    """Build the facts that :func:`decide` needs."""
    world, pool = state.world, state.standbys
    assert pool.capacity is not None
    apart = guaranteed_job.kept_out(state)  # the successor's workers take the place of ours
    guaranteed = [one for one in state.membership.with_role("live") if one.eviction is None and one.name not in apart]
    standbys = state.membership.with_role("standby")
    members = {*world.members, *world.next_names}
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
    members = t.state.membership.of((*t.state.world.members, *t.state.world.next_names))
    busy = {worker.job_id for worker in members}
    for job_id in jobs:
        if job_id not in busy:
            _release(t, job_id, reason)


def registered(t: Transition, news: Registered) -> None:
    """Turn a worker away whose job was told to end before it came, unless a world counts on it."""
    world, worker = t.state.world, t.state.membership.workers[news.name]
    if worker.name in world.names or worker.name in world.next_names:
        return
    if worker.role == "standby" and worker.job_id in t.state.standbys.released and not worker.dismissed:
        membership.dismiss(t, worker.name, "of no use any more")


def eviction_changed(t: Transition, news: EvictionChanged) -> None:
    """Keep what waits in the queue off the nodes that others want back."""
    if _is_wanted_by_others(t.state, t.state.membership.workers[news.worker.name]):
        _make_way(t)


def world_committed(t: Transition, _: WorldCommitted) -> None:
    """Do so once more where the leave took long: nodes become free only now, one after another."""
    members = t.state.world.names
    standbys = t.state.membership.with_role("standby")
    if any(worker.name not in members and _is_wanted_by_others(t.state, worker) for worker in standbys):
        _make_way(t)


def _is_wanted_by_others(state: RunState, worker: Worker) -> bool:
    """Return whether a standby worker goes away because others want its node.

    A job that we end gets the same signal, and one whose time limit comes is warned by one.
    """
    notice = worker.eviction
    if worker.role != "standby" or notice is None or worker.job_id in state.standbys.released:
        return False
    if notice.kind != "signal":
        return notice.kind == "preemption"
    ends_at = next((job.ends_at for job in state.standbys.jobs if job.job_id == worker.job_id), None)
    warned = warning_seconds(state.settings.config.standby) + EARLY
    return ends_at is None or notice.at < ends_at - warned


def _make_way(t: Transition) -> None:
    """Let waiting jobs not start for a while.

    Slurm frees the nodes of the jobs that it takes one by one, and while the last of them is not free, the job that
    wants them all cannot start. Slurm's backfill plans it on nodes of its own choice, which are others, so that jobs of
    ours could start on those: then it would have to take them as well, and wait for them.
    """
    pool = t.state.standbys
    since = pool.deferred_since if t.now < pool.deferred_until + APART else t.now
    until = min(t.now + APART, since + STRETCH)
    if until <= max(t.now, pool.deferred_until + APART / 2):
        return
    _write(t, replace(pool, deferred_since=since, deferred_until=until))
    seen = (job.job_id for job in pool.jobs if job.state == "pending" and not job.nodes)
    if waiting := tuple(dict.fromkeys((*seen, *pool.unseen))):
        t.actions.append(Defer(waiting, until))


def _release(t: Transition, job_id: str, reason: str) -> None:
    """End a standby job: its workers are told to leave, and the scheduler ends what is left of it."""
    t.emit(events.StandbyRelease(job_id=job_id, reason=reason))
    for worker in t.state.membership.of_job(job_id, "standby"):
        if not worker.dismissed:
            membership.dismiss(t, worker.name, "of no use any more")
    _end(t, job_id)


def _end(t: Transition, job_id: str) -> None:
    """Have the scheduler end a job, whose workers are not to be taken in any more."""
    pool = t.state.standbys
    starting = {job: place for job, place in pool.starting.items() if job != job_id}
    _write(t, replace(pool, starting=starting, released={**pool.released, job_id: t.now}))
    t.actions.append(Release(job_id))


def workers_lost(t: Transition, news: WorkersLost) -> None:
    """End the standby jobs of lost workers that were their last ones: they would only hold nodes."""
    standbys = [one.worker for one in news.workers if one.worker.role == "standby"]
    jobs = dict.fromkeys(one.job_id for one in standbys if one.job_id not in t.state.membership.by_job)
    if not jobs:
        return
    noticed = {one.job_id for one in standbys if one.eviction is not None}
    to_come, seen = _to_come(t.state, news), {job.job_id for job in t.state.standbys.jobs}
    for job_id in jobs:
        if job_id in seen and not of_job(job_id, to_come):
            if job_id not in noticed:
                _fails(t, job_id)
            _end(t, job_id)


def _to_come(state: RunState, news: WorkersLost) -> list[str]:
    """Return the members of the live world that have not come back to a restarted coordinator, but may."""
    gone = {*state.damage.lost, *(one.worker.name for one in news.workers)}
    return [name for name in state.membership.missing(state.world.members) if name not in gone]
