"""Membership: workers register, are heard of, and go. Eviction notices are :mod:`eviction`'s."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from liver_slurm.coordinator.core.io import Release, Tick
from liver_slurm.coordinator.core.lifecycle import must_go
from liver_slurm.coordinator.core.state import RunPhase
from liver_slurm.coordinator.core.transition import (
    Admitted,
    HeardInWorld,
    LastStepTrained,
    Registered,
    Transition,
    WorkerGone,
    WorkerLost,
    Writer,
)
from liver_slurm.coordinator.core.workers import Eviction, Membership, Worker
from liver_slurm.protocol.messages import (
    PROTOCOL,
    Alive,
    Failed,
    Finished,
    FromWorker,
    Heartbeat,
    Leave,
    Leaving,
    Refused,
    Register,
    Welcome,
)
from liver_slurm.rundir import events

BEATS = 5.0
"""Heartbeats that a worker whose job is over may miss until it is lost."""

_write = Writer(Membership, __name__)


def _put(t: Transition, worker: Worker) -> None:
    membership = t.state.membership
    _write(t, replace(membership, workers={**membership.workers, worker.name: worker}))


def _change(t: Transition, name: str, **changes: Any) -> None:
    _put(t, replace(t.state.membership.workers[name], **changes))


def _forget(t: Transition, name: str) -> None:
    membership = t.state.membership
    others = {other: worker for other, worker in membership.workers.items() if other != name}
    _write(t, replace(membership, workers=others))


# ---- registration --------------------------------------------------------------------------------------------------


def register(t: Transition, given: Any) -> None:
    """Handle a worker that says who it is, for the first time or again."""
    message: Register = given.message
    refusal = _refusal(t, message)
    if refusal is not None:
        t.reject("refused")
        t.answer(given.peer, Refused(reason=refusal))
        if message.role == "standby" and _of_lost_world(t, message):
            t.actions.append(Release(message.job_id))  # it may stand in a collective for ever, and holds its nodes
        return
    known = t.state.membership.get(message.worker)
    if known is not None and (known.host, known.pid) != (message.host, message.pid):
        t.signal(WorkerGone(known.name, "another process took its place"))
    t.signal(Admitted(given.peer, message))


def admit(t: Transition, news: Admitted) -> None:
    """Register a worker, and tell it so."""
    message, settings = news.message, t.state.settings
    known = t.state.membership.get(message.worker)
    worker = Worker(
        name=message.worker,
        peer=news.peer,
        role=message.role,
        host=message.host,
        pid=message.pid,
        job_id=message.job_id,
        device=message.device,
        arrived=known.arrived if known else t.now,
        seen=t.now,
        generation=message.generation,
        step=message.step,
        step_at=t.now,
        signalled=known.signalled if known else None,
        announced=known.announced if known else None,
        dismissed=known.dismissed if known else False,
        finished=known.finished if known else False,
    )
    _put(t, worker)
    t.answer(news.peer, Welcome(run_id=settings.run_id, epoch=settings.epoch))
    outcome = t.state.lifecycle.outcome
    if outcome is None:
        warm = message.warm or (known is not None and known.warm)
        t.signal(Registered(worker.name, first=known is None, warm=warm))
    elif must_go(t.state, worker):
        t.send([worker.name], Leave(epoch=settings.epoch, reason=outcome[1]))


def _refusal(t: Transition, message: Register) -> str | None:
    """Return why a registration is refused; None: it is accepted."""
    settings, known = t.state.settings, t.state.membership.get(message.worker)
    if message.protocol != PROTOCOL:
        return f"protocol {message.protocol} is not the coordinator's {PROTOCOL}: install the same version on both"
    if message.run_id != settings.run_id:
        return f"this is run {settings.run_id}, not {message.run_id}"
    if _of_lost_world(t, message):
        return f"generation {message.generation} is lost: the run has begun anew from {settings.start_step} steps"
    if message.generation > t.state.generation:
        return f"generation {message.generation} was never committed in this run"
    if message.role == "live" and message.job_id == settings.job_id and message.restarts < settings.restarts:
        return f"job {message.job_id} was started again since; this process is of its start {message.restarts}"
    if known is None or (known.host, known.pid) == (message.host, message.pid):
        return None
    if t.now - known.seen > settings.config.job.lost_after:
        return None
    return f"the name {message.worker} is taken by process {known.pid} on {known.host}"


def _of_lost_world(t: Transition, message: Register) -> bool:
    """Whether the worker trains in a world that was live before the restart."""
    return 0 <= message.generation < t.state.world.lost_below


def warm_up(t: Transition, news: Registered) -> None:
    """Note that a registered worker is warm, if it is."""
    if news.warm:
        _warmed(t, news.name)


def _warmed(t: Transition, name: str) -> None:
    worker = t.state.membership.workers[name]
    if worker.warm:
        return
    _change(t, name, warm=True, arrived=t.now)
    if name in t.state.world.members:
        return
    if worker.role == "standby":
        t.emit(events.StandbyReady(worker=name, host=worker.host, device=worker.device, job_id=worker.job_id))
    _write(t, replace(t.state.membership, last_arrival=t.now))
    t.request_replan()


# ---- being heard of ------------------------------------------------------------------------------------------------


def hear(t: Transition, peer: bytes, message: FromWorker) -> bool:
    """Note that a worker was heard of now; False: the message is not from the process that is registered."""
    worker = t.state.membership.get(message.worker)
    if worker is None or worker.peer != peer:
        return False
    if not isinstance(message, Heartbeat):  # it notes the time with the rest: there may be thousands of workers
        _change(t, worker.name, seen=t.now)
    return True


def heartbeat(t: Transition, message: Heartbeat) -> None:
    """Handle a heartbeat; what the worker may have missed on a broken connection is said again."""
    state, epoch = t.state, t.state.settings.epoch
    worker = state.membership.workers[message.worker]
    beaten = replace(
        worker,
        seen=t.now,
        generation=min(message.generation, state.generation),
        step=max(worker.step, message.step),
        step_at=t.now,
        step_seconds=message.step_seconds,
        rejected=message.rejected,
    )
    _put(t, beaten)
    t.answer(worker.peer, Alive(epoch=epoch))
    if message.warm and not worker.warm:
        _warmed(t, worker.name)
    outcome = state.lifecycle.outcome
    if must_go(state, worker) or worker.dismissed:
        t.send([worker.name], Leave(epoch=epoch, reason=outcome[1] if outcome is not None else "dismissed"))
    elif state.world.attempt is not None:
        t.signal(HeardInWorld(worker.name, message.generation))


def finished(t: Transition, message: Finished) -> None:
    """Handle a member of the live world that has trained the last step."""
    state = t.state
    if message.worker not in state.world.members or message.step < state.settings.config.train.steps:
        t.reject("impossible")
        return
    if state.membership.workers[message.worker].finished:
        t.reject("duplicate")
        return
    _change(t, message.worker, finished=True, step=message.step)
    members = t.state.members
    by_all = len(members) == len(state.world.members) and all(member.finished for member in members)
    t.signal(LastStepTrained(message.step, by_all=by_all))


def entered(t: Transition, name: str, generation: int) -> None:
    """Note that a worker trains in the world of a generation."""
    _change(t, name, generation=generation)


def heard_of_eviction(t: Transition, name: str, words: dict[str, Eviction | None]) -> None:
    """Note what is said of when a worker goes away: ``signalled`` and ``announced``, those that are new."""
    _change(t, name, **words)


def available_again(t: Transition, name: str) -> None:
    """Note that a worker outside the live world stays after all; it queues behind those that were there."""
    _change(t, name, arrived=t.now)
    _write(t, replace(t.state.membership, last_arrival=t.now))


# ---- going ---------------------------------------------------------------------------------------------------------


def dismiss(t: Transition, name: str, reason: str) -> None:
    """Tell a worker to exit."""
    t.send([name], Leave(epoch=t.state.settings.epoch, reason=reason))
    _change(t, name, dismissed=True)


def leaving(t: Transition, message: Leaving) -> None:
    """Handle a worker that exits, as it was told to or after a notice."""
    state, worker = t.state, t.state.membership.workers[message.worker]
    pending = state.world.pending
    needed = state.world.members if pending is None else pending.involved
    unexpected = worker.name in needed or (worker.role == "live" and state.phase is RunPhase.STARTING)
    if unexpected and not state.over:
        t.signal(WorkerGone(worker.name, f"it left: {message.reason}"))
        return
    _forget(t, worker.name)
    t.emit(events.WorkerLeft(worker=worker.name, host=worker.host, reason=message.reason))
    t.request_replan()


def failed(t: Transition, message: Failed) -> None:
    """Handle a worker that says why it is about to die."""
    t.signal(WorkerGone(message.worker, message.error))


def lose(t: Transition, news: WorkerGone) -> None:
    """Forget a worker that is gone; if the run counted on it, it is lost."""
    state, worker = t.state, t.state.membership.get(news.name)
    if worker is None:
        return
    _forget(t, worker.name)
    if state.over or worker.dismissed:
        t.emit(events.WorkerLeft(worker=worker.name, host=worker.host, reason=news.reason))
        return
    in_world = worker.name in state.world.members
    t.emit(
        events.WorkerLost(worker=worker.name, host=worker.host, role=worker.role, in_world=in_world, reason=news.reason)
    )
    t.request_replan()
    t.signal(WorkerLost(worker, news.reason, in_world))


def extend_after_stall(t: Transition, _: Tick) -> None:
    """After a stall of the coordinator, extend every last-seen time by it, so that no worker is declared lost."""
    if t.elapsed <= t.state.settings.config.job.lost_after / 2:
        return
    membership = t.state.membership
    heard = {name: replace(worker, seen=worker.seen + t.elapsed) for name, worker in membership.workers.items()}
    _write(t, replace(membership, workers=heard))


def find_silent(t: Transition, _: Tick) -> None:
    """Lose workers that have not been heard of for too long."""
    job = t.state.settings.config.job
    heard_since = t.now - min(job.lost_after, BEATS * job.heartbeat)
    for worker in t.state.membership.workers.values():
        if worker.seen < heard_since and t.now - worker.seen > _patience(t, worker):
            t.signal(WorkerGone(worker.name, f"silent for {t.now - worker.seen:.1f} s"))


def _patience(t: Transition, worker: Worker) -> float:
    """Return the seconds of silence after which a worker is lost."""
    job, departure = t.state.settings.config.job, worker.departure
    if departure is not None and departure.returns and worker.name not in t.state.world.members:
        return math.inf  # it cannot speak; should its job end meanwhile, the scheduler says so
    if worker.announced is not None and worker.announced.kind == "over":
        return min(job.lost_after, BEATS * job.heartbeat)
    return job.lost_after
