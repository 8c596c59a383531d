"""What a run remembers of itself for its policy: how long standbys stayed, what reconfigurations took.

Found by comparing the state before and after a turn, so that none of the many ways in which a worker goes has to tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from liver_slurm.coordinator.core.records import LifeBegan, LifeEnded, Measurement, Record
from liver_slurm.coordinator.core.state import RunState, Worker
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy.survival import Life
from liver_slurm.policy.types import Measured

REMEMBERED = 200
"""Lives and measurements that are kept at most."""


def update(turn: Transition, before: RunState, *, lives: bool) -> None:
    """Take note of what this turn has changed.

    Args:
        lives: look for standbys that have come or gone. Not after a heartbeat: there are thousands, none ends a life,
            and one that begins a life is seen at the next tick.
    """
    if lives:
        _lives(turn, before)
    if turn.state.last_reconfiguration is not before.last_reconfiguration:
        _measure(turn)


def _lives(turn: Transition, before: RunState) -> None:
    state = turn.state
    here = {worker.job_id for worker in _staying(state.workers.values())}
    open_lives = {life.job_id: life for life in state.lives if life.ended is None}
    ended = {job: life for job, life in open_lives.items() if job not in here and _has_gone(turn, before, job)}
    begun = sorted(here - set(open_lives))
    if not ended and not begun:
        return
    partitions = {job.job_id: job.partition for job in state.supply.jobs} if state.supply else {}
    released = {worker.job_id for worker in (*before.workers.values(), *state.workers.values()) if worker.dismissed}
    known = list(state.lives)
    for job, life in ended.items():
        # A worker is also dismissed after its notice.
        gone = [worker for worker in state.workers.values() if worker.job_id == job]
        taken = any(worker.departure is not None for worker in gone) or job not in released
        known[known.index(life)] = replace(life, ended=turn.now, taken=taken)
        turn.journal(LifeEnded(job_id=job, time=turn.now, taken=taken))
    for job in begun:
        came = min(worker.arrived for worker in _staying(state.workers.values()) if worker.job_id == job)
        known.append(Life(job, partitions.get(job, ""), came))
        turn.journal(LifeBegan(job_id=job, partition=partitions.get(job, ""), time=came))
    turn.update(lives=tuple(known[-REMEMBERED:]))


def _staying(workers: Iterable[Worker]) -> list[Worker]:
    return [
        worker
        for worker in workers
        if worker.role == "standby" and worker.warm and worker.departure is None and not worker.dismissed
    ]


def _has_gone(turn: Transition, before: RunState, job: str) -> bool:
    """A job that the last coordinator knew is gone when the scheduler says so, not because it has yet to register."""
    if any(worker.job_id == job for worker in (*before.workers.values(), *turn.state.workers.values())):
        return True
    supply = turn.state.supply
    return supply is not None and supply.blind is None and all(other.job_id != job for other in supply.jobs)


def _measure(turn: Transition) -> None:
    last = turn.state.last_reconfiguration
    if last is None:
        return
    added = Layout.parse(last.to).size - Layout.parse(last.source).size
    one = Measured(last.generation, added, last.prepare_s, last.exposed_s)
    turn.update(measured=(*turn.state.measured, one)[-REMEMBERED:], live_since=turn.now)
    turn.journal(
        Measurement(
            generation=one.generation, added=added, prepare_s=one.prepare_s, exposed_s=one.exposed_s, time=turn.now
        )
    )


def recall(state: RunState, record: Record) -> RunState:
    """Take over what a record of the journal says."""
    if isinstance(record, LifeBegan):
        began = Life(record.job_id, record.partition, record.time)
        return replace(state, lives=(*state.lives, began)[-REMEMBERED:])
    if isinstance(record, LifeEnded):
        lives = tuple(
            replace(life, ended=record.time, taken=record.taken)
            if life.job_id == record.job_id and life.ended is None
            else life
            for life in state.lives
        )
        return replace(state, lives=lives)
    if isinstance(record, Measurement):
        one = Measured(record.generation, record.added, record.prepare_s, record.exposed_s)
        return replace(state, measured=(*state.measured, one)[-REMEMBERED:], live_since=record.time)
    return state
