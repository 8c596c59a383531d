"""Membership: workers come in, are heard of, and go.

Who is let in is :mod:`admission`'s, eviction notices are :mod:`eviction`'s.
"""

from __future__ import annotations

import math
from typing import Any

from liver_slurm.base.frozen import replace
from liver_slurm.base.table import Table
from liver_slurm.coordinator.core.io import Tick
from liver_slurm.coordinator.core.lifecycle import end, must_go
from liver_slurm.coordinator.core.signals import (
    OWN_WORD,
    Admitted,
    Heard,
    LastStepTrained,
    Registered,
    WorkerGone,
    WorkerLost,
    WorkersGone,
    WorkersLost,
    WorldCommitted,
)
from liver_slurm.coordinator.core.state import RunPhase, RunState
from liver_slurm.coordinator.core.transition import Transition, Writer
from liver_slurm.coordinator.core.workers import BEATS, Eviction, Membership, Worker
from liver_slurm.protocol.messages import Alive, Failed, Finished, FromWorker, Halt, Heartbeat, Leave, Leaving, Welcome
from liver_slurm.rundir import events

_write = Writer(Membership, __name__)


def _put(t: Transition, worker: Worker) -> None:
    _write(t, t.state.membership.put(worker))


def _change(t: Transition, name: str, **changes: Any) -> None:
    _put(t, replace(t.state.membership.workers[name], **changes))


def _forget(t: Transition, name: str) -> None:
    _write(t, t.state.membership.without(name))


# ---- registration --------------------------------------------------------------------------------------------------


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
        began=message.began,
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
    if known is None:
        told = events.WorkerRegistered(
            worker=worker.name,
            host=worker.host,
            role=worker.role,
            job_id=worker.job_id,
            device=worker.device,
            warm=message.warm,
        )
        t.emit(told)
    outcome = t.state.lifecycle.outcome
    if outcome is None:
        warm = message.warm or (known is not None and known.warm)
        t.signal(Registered(worker.name, first=known is None, warm=warm))
    elif must_go(t.state, worker):
        t.send([worker.name], Leave(epoch=settings.epoch, reason=outcome[1]))


def warm_up(t: Transition, news: Registered) -> None:
    """Note that a registered worker is warm, if it is."""
    if news.warm:
        _warmed(t, news.name)


def _warmed(t: Transition, name: str) -> None:
    worker = t.state.membership.workers[name]
    if worker.warm:
        return
    _change(t, name, warm=True, arrived=t.now)
    if name in t.state.world.names:
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


_AS_TOLD = (
    *("step_seconds", "rejected", "validating", "since_step", "computing", "copying"),
    *("mirror", "mirror_way", "mirror_bytes", "mirror_proofs"),
)
"""What a worker's record takes over from a heartbeat."""


def heartbeat(t: Transition, message: Heartbeat) -> None:
    """Handle a heartbeat; what the worker may have missed on a broken connection is said again."""
    state, epoch = t.state, t.state.settings.epoch
    worker = state.membership.workers[message.worker]
    # One of an earlier version does not say which worlds it is before.
    outside = message.targets == {} and state.world.has_left_behind(worker.name, message.generation)
    beaten = replace(
        worker,
        seen=t.now,
        generation=min(message.generation, state.generation),
        # After a return to a checkpoint, one from the world before knows of steps that are to be trained again.
        step=worker.step if message.generation < state.generation else max(worker.step, message.step),
        step_at=t.now,
        **{name: getattr(message, name) for name in _AS_TOLD},
        outside_since=(worker.outside_since or t.now) if outside else 0.0,
    )
    _put(t, beaten)
    every = state.membership.beat_seconds(state.settings.config.job)
    t.answer(worker.peer, Alive(epoch=epoch, every=every if every > state.settings.config.job.heartbeat else 0.0))
    if message.warm and not worker.warm:
        _warmed(t, worker.name)
    outcome = state.lifecycle.outcome
    if must_go(state, worker) or worker.dismissed:
        t.send([worker.name], Leave(epoch=epoch, reason=outcome[1] if outcome is not None else "dismissed"))
        if outside:  # it may be in a collective, where it does not hear that
            t.send([worker.name], Halt(epoch=epoch, generation=message.generation, reason="its world is over"))
    elif outside or _may_differ(state, message):
        t.signal(Heard(message))


def _may_differ(state: RunState, beat: Heartbeat) -> bool:
    """Return whether a heartbeat has to be compared with the state.

    There may be thousands in which nothing is under way.
    """
    barriers = state.barriers
    broken = state.damage.broken
    under_way = (
        broken or state.world.attempt is not None or barriers.cutover is not None or barriers.checkpoint is not None
    )
    agreed = barriers.agreed_checkpoint
    reaches = agreed is not None and beat.step <= agreed.step
    return bool(under_way or reaches or beat.targets or beat.boundaries or beat.finished or beat.notice)


def finished(t: Transition, message: Finished) -> None:
    """Handle a member of the live world that has trained the last step."""
    state = t.state
    early = message.step < state.settings.config.train.steps and not message.reason
    if message.worker not in state.world.names or early:
        t.reject("impossible")
        return
    if state.membership.workers[message.worker].finished:
        t.reject("duplicate")
        return
    _change(t, message.worker, finished=True, step=message.step)
    members = t.state.members
    by_all = len(members) == len(state.world.members) and all(member.finished for member in members)
    t.signal(LastStepTrained(message.step, by_all=by_all, reason=message.reason))


def entered(t: Transition, name: str, generation: int) -> None:
    """Note that a worker trains in the world of a generation."""
    _change(t, name, generation=generation)


def reached(t: Transition, name: str, step: int) -> None:
    """Note how many steps a worker has completed, as it says itself."""
    _change(t, name, step=step, step_at=t.now, since_step=0.0)


def world_committed(t: Transition, _: WorldCommitted) -> None:
    """Forget steps beyond the committed world's, which are trained again; members say once more that they are done."""
    live = t.state.world.live
    for worker in t.state.members:
        if live is not None and (worker.step > live.step or worker.finished):
            _change(t, worker.name, step=live.step, finished=False)


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
    needed = _counts(state, worker.name) if pending is None else worker.name in pending.voters
    unexpected = needed or (worker.role == "live" and state.phase is RunPhase.STARTING)
    if unexpected and not state.over:
        t.gone(WorkerGone(worker.name, f"it left: {message.reason}"))
        return
    _forget(t, worker.name)
    t.emit(events.WorkerLeft(worker=worker.name, host=worker.host, reason=message.reason))
    t.request_replan()


def _counts(state: RunState, name: str) -> bool:
    """Return whether a worker is a member of the live world, and not a process that has a lost member's name."""
    return name in state.world.names and name not in state.damage.lost


def failed(t: Transition, message: Failed) -> None:
    """Handle a worker that says why it is about to die; what would come in every world ends the run at once."""
    state = t.state
    if message.for_good and message.generation == state.generation and _counts(state, message.worker):
        end(t, RunPhase.FAILED, f"step {message.step} at {message.worker}: {message.error}")
    worker = state.membership.workers[message.worker]
    if message.generation == state.generation and message.step > worker.step:
        _change(t, message.worker, step=message.step)
    t.gone(WorkerGone(message.worker, message.error))


def lose(t: Transition, news: WorkersGone) -> None:
    """Forget workers that are gone; those that the run counted on are lost."""
    lost = tuple(filter(None, [_lose(t, one) for one in news.workers]))
    if lost:
        t.request_replan()
        t.signal(WorkersLost(lost))


def _lose(t: Transition, news: WorkerGone) -> WorkerLost | None:
    state, worker = t.state, t.state.membership.get(news.name)
    if worker is None:
        return None
    _forget(t, worker.name)
    if state.over or worker.dismissed:
        t.emit(events.WorkerLeft(worker=worker.name, host=worker.host, reason=news.reason))
        return None
    in_world = _counts(state, worker.name)
    t.emit(
        events.WorkerLost(
            worker=worker.name,
            host=worker.host,
            role=worker.role,
            in_world=in_world,
            reason=news.reason,
            detected_by=news.how,
            detected_s=news.after,
        )
    )
    return WorkerLost(worker, news.reason, in_world, news.how == OWN_WORD)


def extend_after_stall(t: Transition, _: Tick) -> None:
    """After a stall of the coordinator, extend every last-seen time by it, so that no worker is declared lost.

    What came before the tick does not count: of thousands of messages that have waited, one is read first.
    """
    membership = t.state.membership
    stalled = t.now - max(membership.ticked, t.state.lifecycle.started)
    if stalled > t.state.settings.config.job.lost_after / 2:
        heard = Table(
            (name, replace(worker, seen=min(t.now, worker.seen + stalled)))
            for name, worker in membership.workers.items()
        )
        membership = replace(membership, workers=heard)
    _write(t, replace(membership, ticked=t.now))


def find_silent(t: Transition, _: Tick) -> None:
    """Lose workers that have not been heard of for too long."""
    job = t.state.settings.config.job
    heard_since = t.now - min(job.lost_after, BEATS * t.state.membership.beat_seconds(job))
    for worker in t.state.membership.workers.values():
        if worker.seen < heard_since and t.now - worker.seen > _patience(t, worker):
            silence = t.now - worker.seen
            t.gone(WorkerGone(worker.name, f"silent for {silence:.1f} s", how="silence", after=silence))


def _patience(t: Transition, worker: Worker) -> float:
    """Return the seconds of silence after which a worker is lost."""
    job, notice = t.state.settings.config.job, worker.eviction
    if notice is not None and notice.returns and worker.name not in t.state.world.names:
        return math.inf  # it cannot speak; should its job end meanwhile, the scheduler says so
    if worker.announced is not None and worker.announced.kind == "over":
        return min(job.lost_after, BEATS * t.state.membership.beat_seconds(job))
    return job.lost_after
