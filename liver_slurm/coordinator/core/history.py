"""History: what a run remembers of itself for its policy: how long standbys stayed, what reconfigurations took.

Found by comparing the state before and after a transition, so that none of the many ways in which a worker goes has to
be told.
"""

from __future__ import annotations

from liver_slurm.coordinator.core.records import LifeBegan, LifeEnded, Measurement
from liver_slurm.coordinator.core.state import RunState
from liver_slurm.coordinator.core.table import Table
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.coordinator.core.workers import Membership, Worker
from liver_slurm.parallel.layout import Layout


def update(t: Transition, before: RunState, *, spans: bool, everybody: bool) -> None:
    """Record what this transition has changed.

    Args:
        t: the transition.
        before: the state that it began with.
        spans: look for standbys that have come or gone. Not after a heartbeat: there are thousands, none ends a span,
            and one that begins a span is seen at the next tick.
        everybody: look at all standbys, also if this transition has made none of them come or go.
    """
    if spans and (everybody or _moved(before.membership, t.state.membership)):
        _spans(t, before)
    if t.state.world.last is not before.world.last:
        _measure(t)


def _moved(before: Membership, now: Membership) -> bool:
    """Whether a standby has become available, or is no more. Each of thousands of members says much else."""
    old, new = Table.of(before.workers), Table.of(now.workers)
    if len(old) != len(new):
        return True
    return any(_is_there(worker) != _is_there(old.get(name)) for name, worker in new.differing(old))


def _is_there(worker: Worker | None) -> tuple[str, str, bool] | None:
    return None if worker is None else (worker.role, worker.job_id, worker.available)


def _spans(t: Transition, before: RunState) -> None:
    state = t.state
    staying = _available_standbys(state.membership)
    here = {worker.job_id for worker in staying}
    running = {span.job_id: span for span in state.history.spans if span.ended is None}
    ended = [job for job in running if job not in here and _has_gone(t, before, job)]
    begun = sorted(here - set(running))
    if not ended and not begun:
        return
    everybody = (*before.membership.workers.values(), *state.membership.workers.values())
    released = {worker.job_id for worker in everybody if worker.dismissed}
    for job in ended:
        # A worker is also dismissed after its notice.
        gone = [worker for worker in state.membership.workers.values() if worker.job_id == job]
        taken = any(worker.departure is not None for worker in gone) or job not in released
        t.journal(LifeEnded(job_id=job, time=t.now, taken=taken))
    partitions = {job.job_id: job.partition for job in state.standbys.jobs}
    for job in begun:
        came = min(worker.arrived for worker in staying if worker.job_id == job)
        t.journal(LifeBegan(job_id=job, partition=partitions.get(job, ""), time=came))


def _available_standbys(membership: Membership) -> list[Worker]:
    return [worker for worker in membership.workers.values() if worker.role == "standby" and worker.available]


def _has_gone(t: Transition, before: RunState, job: str) -> bool:
    """Whether a job is gone. One that only the last coordinator knew may have yet to register: ask the scheduler."""
    everybody = (*before.membership.workers.values(), *t.state.membership.workers.values())
    if any(worker.job_id == job for worker in everybody):
        return True
    capacity = t.state.standbys.capacity
    return capacity is not None and capacity.blind is None and all(other.job_id != job for other in capacity.jobs)


def _measure(t: Transition) -> None:
    last = t.state.world.last
    if last is None or last.cause == "loss":
        return
    added = Layout.parse(last.to).size - Layout.parse(last.source).size
    t.journal(
        Measurement(
            generation=last.generation,
            added=added,
            prepare_s=last.prepare_s,
            exposed_s=last.exposed_s,
            time=t.now,
        )
    )
