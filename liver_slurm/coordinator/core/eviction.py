"""Notices: a worker's own word, the scheduler's word about its job, and what becomes of the two.

A worker speaks first, within milliseconds of a signal, but a signal does not say how much time there is. The
scheduler's record, seen at the next look, does; it is also the net for signals that are lost, and the only word of a
drained node or a reservation. It is taken back when the record no longer says so, if the worker was not told to leave.
"""

from __future__ import annotations

import math
from dataclasses import replace

from liver_slurm.coordinator.core import membership, reconfiguration, resize_queue
from liver_slurm.coordinator.core.state import Attempt, Eviction, Worker
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.protocol.messages import Notice
from liver_slurm.rundir import events
from liver_slurm.scheduler.ports import DEFAULT_GRACE, CapacitySnapshot, StandbyJob

STOPPED_BY = 5.0
"""Seconds after SIGTSTP by which Slurm has either suspended the job, or never will."""


# ---- a worker's word -----------------------------------------------------------------------------------------------


def notice(turn: Transition, message: Notice) -> None:
    """A worker will go away; Slurm takes a standby job as a whole, so its other workers will too."""
    worker = turn.state.workers[message.worker]
    if message.withdrawn:
        _resumed(turn, worker)
        return
    grace = _grace(turn, worker)
    departure = Eviction(
        kind="suspension" if message.suspended else "signal",
        reason=message.reason,
        deadline=message.deadline if message.deadline is not None else message.time + grace,
        at=message.time,
    )
    known = worker.signalled
    in_force = known is not None and not known.returns and turn.now < known.deadline
    if known is not None and in_force and (departure.returns or departure.deadline >= known.deadline):
        turn.reject("duplicate")
        return
    for name in (worker.name, *_others_of_job(turn, worker)):
        revise(turn, name, signalled=departure)


def _resumed(turn: Transition, worker: Worker) -> None:
    for name in (worker.name, *_others_of_job(turn, worker)):
        other = turn.state.workers.get(name)
        words = {"signalled": other.signalled, "announced": other.announced} if other is not None else {}
        back = {key: None for key, word in words.items() if word is not None and word.returns}
        if back:
            revise(turn, name, **back)


def _others_of_job(turn: Transition, worker: Worker) -> list[str]:
    if worker.role != "standby":
        return []
    return [
        other.name
        for other in turn.state.workers.values()
        if other.job_id == worker.job_id and other.role == "standby" and other.name != worker.name
    ]


def _grace(turn: Transition, worker: Worker) -> float:
    """Seconds that a signal leaves; of a job that no look has shown yet, the least that any of ours has."""
    fixed = turn.state.settings.config.standby.grace
    if fixed is not None:
        return fixed
    jobs = turn.state.supply.jobs if turn.state.supply is not None else ()
    graces = {job.job_id: job.grace for job in jobs}
    return graces.get(worker.job_id, min(graces.values(), default=DEFAULT_GRACE))


# ---- the scheduler's word ------------------------------------------------------------------------------------------


def supply(turn: Transition, seen: CapacitySnapshot) -> None:
    """One look: jobs that will go away, that no longer will, and that are over."""
    before = turn.state.supply
    turn.update(supply=seen)
    if seen.blind is not None:
        return
    jobs = {job.job_id: job for job in seen.jobs}
    earlier = {job.job_id: job for job in before.jobs} if before is not None else {}
    for worker in list(turn.state.workers.values()):
        if worker.role != "standby" or worker.name not in turn.state.workers:
            continue
        job = jobs.get(worker.job_id)
        if job is not None:
            _announce(turn, worker, job, seen.time)
        elif before is not None and worker.job_id in earlier:
            _over(turn, worker, before.time + earlier[worker.job_id].grace)


def _announce(turn: Transition, worker: Worker, job: StandbyJob, time: float) -> None:
    word, known = job.notice, worker.announced
    if word is None:
        changes: dict[str, Eviction | None] = {"announced": None} if known is not None else {}
        signalled = worker.signalled
        if signalled is not None and signalled.returns and time > signalled.at + STOPPED_BY:
            changes["signalled"] = None  # whoever sent that SIGTSTP, it was not a suspension
        elif signalled is not None and not signalled.returns and signalled.deadline < min(time, worker.seen):
            changes["signalled"] = replace(signalled, deadline=math.inf)  # the end that was feared did not come
    else:
        at = known.at if known is not None and known.kind == word.kind else turn.now
        deadline = word.deadline if word.deadline is not None else math.inf
        if word.kind == "suspension":
            deadline = at  # it is stopped already
        changes = {"announced": Eviction(word.kind, word.reason, deadline, at)}
    if changes:
        revise(turn, worker.name, **changes)


def _over(turn: Transition, worker: Worker, deadline: float) -> None:
    """Its job is over. Its processes may still have the time between SIGTERM and SIGKILL, and can hand over in it."""
    reason, job = f"standby job {worker.job_id} is over", turn.state.settings.config.job
    if turn.now - worker.seen > membership.BEATS * job.heartbeat or deadline <= turn.now:
        membership.lose(turn, worker.name, reason)
    else:
        revise(turn, worker.name, announced=Eviction("over", reason, deadline, turn.now))


# ---- what becomes of them ------------------------------------------------------------------------------------------


def revise(turn: Transition, name: str, **words: Eviction | None) -> None:
    """Note what is said of a worker now, and act on the difference.

    ``words``: ``signalled``, what it says itself, or ``announced``; None: nothing any more.
    """
    worker = turn.state.workers.get(name)
    if worker is None:
        return
    turn.change_worker(name, **words)
    before, after = worker.departure, turn.state.workers[name].departure
    if after is None:
        if before is not None:
            _take_back(turn, worker, before)
    elif before is None:
        _tell(turn, worker, events.Notice, after)
        _depart(turn, worker, after)
    elif (before.kind, before.deadline) != (after.kind, after.deadline):
        if before.kind != after.kind or abs(before.deadline - after.deadline) > 1.0:
            _tell(turn, worker, events.NoticeChanged, after)
        if after.deadline > before.deadline:
            _give_more_time(turn, before.deadline)
        _depart(turn, worker, after)


def _tell(
    turn: Transition, worker: Worker, event: type[events.Notice | events.NoticeChanged], departure: Eviction
) -> None:
    turn.emit(
        event(
            worker=worker.name,
            host=worker.host,
            kind=departure.kind,
            reason=departure.reason,
            deadline=departure.deadline if departure.deadline < math.inf else None,
            in_world=_in_world(turn, worker.name),
        )
    )


def _depart(turn: Transition, worker: Worker, departure: Eviction) -> None:
    """A notice is new, or has changed: it joins the reconfiguration that is under way, or ends it."""
    name, attempt, in_world = worker.name, turn.state.attempt, _in_world(turn, worker.name)
    if attempt is not None and attempt.source is not None and not attempt.committed:
        if name in attempt.target.members:
            reconfiguration.abort(turn, f"{name} will go away: {departure.reason}")
        elif in_world:
            _leave_with(turn, attempt, name, departure)
    if not in_world and not worker.dismissed and not departure.returns:
        reconfiguration.dismiss(turn, name, departure.reason)
    turn.stir()


def _take_back(turn: Transition, worker: Worker, before: Eviction) -> None:
    """It stays after all. One that was told to leave is on its way already."""
    if worker.dismissed:
        return
    turn.emit(events.NoticeWithdrawn(worker=worker.name, host=worker.host, kind=before.kind, reason=before.reason))
    state, attempt = turn.state, turn.state.attempt
    if not _in_world(turn, worker.name):
        turn.change_worker(worker.name, arrived=turn.now)
        turn.update(last_arrival=turn.now)
    elif attempt is not None and not attempt.committed and worker.name not in attempt.target.members:
        others = [state.workers[member] for member in attempt.involved if member in state.workers]
        if attempt.cause in ("notice", "successor") and all(other.departure is None for other in others):
            reconfiguration.abort(turn, f"{worker.name} stays: {before.reason} no longer holds")
    turn.stir()


def _leave_with(turn: Transition, attempt: Attempt, name: str, departure: Eviction) -> None:
    """The worker leaves with the reconfiguration that is under way, unless that is scheduled for too late a step."""
    held = turn.state.cutover
    step = held.step if held is not None else turn.state.step
    if resize_queue.seconds_until(turn, step) > (departure.deadline - turn.now) / 2:
        reconfiguration.abort(turn, f"{name} will go away before step {step}: {departure.reason}")
    else:
        turn.update(attempt=replace(attempt, deadline=min(attempt.deadline, departure.deadline)))


def _give_more_time(turn: Transition, before: float) -> None:
    """A deadline was estimated too early; what had to be done by then has until the nearest one that is left."""
    attempt = turn.state.attempt
    if attempt is not None and not attempt.committed and attempt.deadline == before:
        turn.update(attempt=replace(attempt, deadline=reconfiguration.deadline_from(turn, attempt.started)))


def _in_world(turn: Transition, name: str) -> bool:
    return turn.state.live is not None and name in turn.state.live.members
