"""Two-phase reconfiguration protocol: prepare, stream, cut over, retire; abort at any point before the commit record.

World 0 takes the same way without a source: there is nothing to stop and nothing to stream, so the commit follows
Prepared.
"""

from __future__ import annotations

import math

import msgspec

from liver_slurm.base.frozen import replace
from liver_slurm.coordinator.core import lifecycle, membership, orders, resize_queue, step_barrier
from liver_slurm.coordinator.core.io import RollBackMetrics
from liver_slurm.coordinator.core.records import AttemptAborted, AttemptStarted, Committed, Entered
from liver_slurm.coordinator.core.signals import BarrierMoved, LastStepTrained, RunEnding, WorldCommitted
from liver_slurm.coordinator.core.state import RunPhase
from liver_slurm.coordinator.core.status import route, summary
from liver_slurm.coordinator.core.transition import Transition, Writer
from liver_slurm.coordinator.core.worlds import Attempt, Cause, ReconfigurationPhase, Rescue, WorldState
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy import stream_schedule
from liver_slurm.policy.types import Backoff, ResizeGoal
from liver_slurm.protocol import votes
from liver_slurm.protocol.messages import Prepared, Streamed, WorldEntered
from liver_slurm.rundir import events

FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 60.0
"""Seconds before the same target world is tried again; doubled with each failure."""

_write = Writer(WorldState, __name__)


def _put(t: Transition, attempt: Attempt | None) -> None:
    _write(t, replace(t.state.world, attempt=attempt))


# ---- PREPARE -------------------------------------------------------------------------------------------------------


def begin(
    t: Transition,
    layout: Layout,
    members: tuple[str, ...],
    cause: Cause,
    reason: str,
    request: ResizeGoal | None = None,
    rescue: Rescue | None = None,
) -> None:
    """Begin an attempt at a world of ``members`` in rank order; its generation number was never used before.

    Args:
        rescue: how it follows the live world, if that is broken.
    """
    state, settings = t.state, t.state.settings
    assert state.world.attempt is None, "reconfigurations never overlap"
    source, generation = state.world.live, state.world.next_generation
    until = resize_queue.seconds_until(state, request.at_step) if request else 0.0
    attempt = Attempt(
        target=World(generation, layout, members, step=rescue.step if rescue is not None else settings.start_step),
        source=source,
        reason=reason,
        cause=cause,
        started=t.now,
        deadline=_deadline_from(t, t.now + until),
        request=request.number if request else -1,
        rescue=rescue,
    )
    held = state.barriers.cutover
    if held is not None and held.request != attempt.request:
        step_barrier.withdraw(t, "cutover")
    _put(t, attempt)
    old = source.members if source else ()
    t.journal(
        AttemptStarted(generation=generation, layout=str(layout), members=members, source_members=old, reason=reason)
    )
    if source is not None:
        t.emit(events.ReconfigurationStarted(**route(attempt), reason=reason), generation)
    orders.tell_prepare(t, attempt.involved, attempt)


def prepared(t: Transition, message: Prepared) -> None:
    """Handle a worker that has built its part of the target world, or could not."""
    attempt = t.state.world.attempt
    if attempt is None or attempt.committed or message.generation != attempt.target.generation:
        return t.reject("late")
    if message.worker not in attempt.voters:
        return t.reject("impossible")
    if message.worker in attempt.prepared:
        return t.reject("duplicate")
    if not message.ok:
        return abort(t, f"{message.worker} could not prepare: {message.error}")
    attempt = replace(attempt, prepared=attempt.prepared.plus(message.worker, message))
    if not attempt.ready:
        return _put(t, attempt)
    attempt = replace(attempt, prepare_s=t.now - attempt.started)
    if not attempt.moves_state:
        return _commit(t, attempt, attempt.target.step)
    attempt = _schedule(t, attempt)
    _put(t, attempt)
    plan = attempt.schedule
    told = events.ReconfigurationPrepared(prepare_s=attempt.prepare_s, reason=attempt.reason)
    if plan is not None:
        told = msgspec.structs.replace(told, stream_steps=plan.steps, wire_s=plan.wire_s, reason=plan.reason)
    t.emit(told, attempt.target.generation)
    if attempt.rescue is None:
        return _ask_to_stop(t, attempt)
    step_barrier.end_here(t, attempt.target.step, attempt.involved, attempt.target.generation)
    return _put(t, replace(attempt, phase=ReconfigurationPhase.STREAM))


# ---- STREAM --------------------------------------------------------------------------------------------------------


def _schedule(t: Transition, attempt: Attempt) -> Attempt:
    """Choose, in mode overlap, the step from which on state streams; the attempt's deadline moves with it."""
    state, config = t.state, t.state.settings.config
    if config.stream.mode != "overlap" or attempt.rescue is not None:
        return attempt
    now_at, held = step_barrier.next_step(t), state.barriers.cutover
    until = held.step if held is not None else config.train.steps - 1
    chosen = stream_schedule.schedule(
        stream_schedule.wire_seconds(attempt.prepared.values()),
        resize_queue.seconds_until(state, state.step + 1),
        _first_gone(t) - t.now,
        max(0, until - now_at),
    )
    ahead = resize_queue.seconds_until(state, until if held is not None else now_at + chosen.steps)
    return replace(attempt, schedule=chosen, deadline=_deadline_from(t, t.now + ahead + chosen.exposed_s))


def _ask_to_stop(t: Transition, attempt: Attempt) -> None:
    """Propose a step to stop training at, unless one is proposed already: all are prepared."""
    barriers = t.state.barriers
    if barriers.cutover is None:
        ahead = attempt.schedule.steps if attempt.schedule is not None else 0
        step = step_barrier.next_step(t, at_least=step_barrier.after_checkpoints(barriers)) + ahead
        step_barrier.propose(t, "cutover", step, generation=attempt.target.generation, request=attempt.request)
    t.signal(BarrierMoved())


def barrier_moved(t: Transition, _: BarrierMoved) -> None:
    """React to a vote or a new step of the cutover's barrier: go on, wait, or give up."""
    state, attempt = t.state, t.state.world.attempt
    held = state.barriers.cutover
    if held is None or held.confirmed:
        return
    if held.step >= state.settings.config.train.steps:
        step_barrier.withdraw(t, "cutover")
        if state.world.pending is not None:
            abort(t, "the run ends before the new world could take over")
    elif attempt is not None and attempt.ready and held.agreed:
        begin = streams_from(attempt, held.step)
        step_barrier.confirm_cutover(t, attempt.involved, attempt.target.generation, begin)
        _put(t, replace(attempt, phase=ReconfigurationPhase.STREAM))


def streams_from(attempt: Attempt, step: int) -> int:
    """Return the step from which on state streams for a cutover at ``step``; -1: it moves at the cutover."""
    return step - attempt.schedule.steps if attempt.schedule is not None else -1


def streamed(t: Transition, message: Streamed) -> None:
    """Handle a worker that has moved its state and compared digests: a vote for or against the commit."""
    attempt, held = t.state.world.attempt, t.state.barriers.cutover
    if attempt is None or attempt.committed or message.generation != attempt.target.generation:
        return t.reject("late")
    if message.worker not in attempt.voters or (message.ok and (held is None or not held.confirmed)):
        return t.reject("impossible")
    if not message.ok:
        # In mode overlap also after a yes: its first step in the new world failed.
        return abort(t, f"{message.worker} could not stream: {message.error}")
    if message.worker in attempt.streamed:
        return t.reject("duplicate")
    attempt = replace(attempt, streamed=attempt.streamed.plus(message.worker, message))
    _put(t, attempt)
    if len(attempt.streamed) == len(attempt.involved) and held is not None:
        if problem := votes.disagreement(attempt.streamed, held.step):
            return abort(t, problem)
        stream_s = max(vote.report.seconds for vote in attempt.streamed.values())
        told = events.ReconfigurationStreamed(stream_s=stream_s, reason=attempt.reason)
        t.emit(told, attempt.target.generation)
        _commit(t, attempt, held.step)
    return None


# ---- CUTOVER -------------------------------------------------------------------------------------------------------


def _commit(t: Transition, attempt: Attempt, step: int) -> None:
    """Write the commit record, then tell everybody. The target world is the live one from here on."""
    target, source = attempt.target, attempt.source
    _put(t, attempt)
    old_barriers = t.state.barriers
    stats = None if source is None else summary(t.state, attempt, step)
    held_for = resize_queue.next_at(t.state, attempt.request, step)
    record = Committed(
        generation=target.generation,
        layout=str(target.layout),
        members=target.members,
        source_layout=str(source.layout) if source else "",
        source_members=source.members if source else (),
        source_generation=source.generation if source else -1,
        step=step,
        cause=attempt.cause,
        reason=attempt.reason,
        summary={} if stats is None else stats.to_document(),
        held=old_barriers.next_number if held_for >= 0 else -1,
        held_for=held_for,
        processes=t.state.membership.processes(target.members),
    )
    if attempt.rescue is not None and attempt.rescue.repeats:
        t.actions.append(RollBackMetrics(step))
    t.journal(record)
    step_barrier.displace_checkpoints(t, old_barriers, step)
    if attempt.request >= 0:
        resize_queue.close(t, attempt.request, fulfilled=True)
    # Before they hear of the commit, so that members stop also at the very step that the new world begins with.
    if held_for >= 0:
        step_barrier.repeat(t, target.members)
    else:
        resize_queue.hold(t, told=False)
    orders.tell_commit(t, attempt.involved)
    _dismiss_departing(t)
    t.signal(WorldCommitted())


def _dismiss_departing(t: Transition) -> None:
    """Dismiss workers with a notice that are in no world any more, so that Slurm has its node back in a second."""
    members = t.state.world.names
    for worker in t.state.membership.workers.values():
        notice = worker.eviction
        if notice is None or notice.returns or worker.dismissed:
            continue
        if worker.name not in members:
            membership.dismiss(t, worker.name, notice.reason)


def entered(t: Transition, message: WorldEntered) -> None:
    """Handle a member that begins the first forward pass of the new world."""
    attempt = t.state.world.attempt
    if attempt is None or not attempt.committed or message.generation != attempt.target.generation:
        return t.reject("late")
    if message.worker not in attempt.joined or message.step != attempt.target.step:
        return t.reject("impossible")
    if message.worker in attempt.entered:
        return t.reject("duplicate")
    membership.entered(t, message.worker, message.generation)
    attempt = replace(attempt, entered=attempt.entered.plus(message.worker, message))
    _put(t, attempt)
    if len(attempt.entered) == len(attempt.target.members):
        _retire(t, attempt)
    return None


# ---- RETIRE --------------------------------------------------------------------------------------------------------


def _retire(t: Transition, attempt: Attempt) -> None:
    """Record that all members train in the new world."""
    _put(t, replace(attempt, phase=ReconfigurationPhase.RETIRE))
    target = attempt.target
    t.journal(Entered(generation=target.generation))
    if attempt.stats is not None:
        began = max(message.time for message in attempt.entered.values())
        gate_s = max(message.gate_seconds for message in attempt.entered.values())
        done = attempt.stats.committed(target.generation, t.now, began, gate_s)
        _write(t, replace(t.state.world, last=done))
        t.emit(done)
    told = events.WorldLive(
        layout=str(target.layout), members=target.members, step=target.step, prepare_s=attempt.prepare_s
    )
    t.emit(told)
    t.explain(attempt.reason)
    t.request_replan()
    if steps := [worker.step for worker in t.state.members if worker.finished]:  # before word of the last one came
        t.signal(LastStepTrained(max(steps), by_all=False))


# ---- ABORT ---------------------------------------------------------------------------------------------------------


def abort(t: Transition, reason: str) -> None:
    """Give the target world up; the live world trains on as if nothing had happened."""
    attempt = t.state.world.attempt
    assert attempt is not None
    generation, held = attempt.target.generation, t.state.barriers.cutover
    due = resize_queue.at_step(t.state, attempt.request)
    keep = held is not None and (held.request, held.step) == (attempt.request, due)
    if keep and held is not None and held.generation >= 0:
        step_barrier.hold_again(t)  # before they hear of the abort, and train on beyond the step
    _drop(t, attempt, reason)
    if attempt.source is None:
        t.emit(events.WorldFailed(reason=reason), generation)
        failure = f"the first world, generation {generation}, could not be formed: {reason}"
        return lifecycle.end(t, RunPhase.FAILED, failure)
    if not keep:
        step_barrier.withdraw(t, "cutover")
    t.emit(events.ReconfigurationAborted(reason=reason, **route(attempt)), generation)
    _back_off(t, attempt)
    t.explain(f"aborted: {reason}")
    return t.request_replan()


def _drop(t: Transition, attempt: Attempt, reason: str) -> None:
    assert not attempt.committed, "after the commit record there is no way back"
    generation = attempt.target.generation
    t.journal(AttemptAborted(generation=generation, reason=reason))
    orders.tell_abort(t, attempt.involved, generation, reason)


def _back_off(t: Transition, attempt: Attempt) -> None:
    target, last = attempt.target, t.state.world.backoff
    same = last is not None and (last.layout, last.members) == (target.layout, target.members)
    failures = last.failures + 1 if last is not None and same else 1
    wait = min(FIRST_BACKOFF * 2 ** (failures - 1), LONGEST_BACKOFF)
    _write(t, replace(t.state.world, backoff=Backoff(target.layout, target.members, t.now + wait, failures)))
    resize_queue.failed(t, attempt.request)


def run_ending(t: Transition, news: RunEnding) -> None:
    """Drop the attempt."""
    pending = t.state.world.pending
    if pending is not None:
        _drop(t, pending, news.reason)
    elif t.state.world.attempt is not None:
        _put(t, None)


def hurry(t: Transition, deadline: float) -> None:
    """Give the attempt less time: a member that it needs is gone by ``deadline``."""
    attempt = t.state.world.attempt
    assert attempt is not None
    _put(t, replace(attempt, deadline=min(attempt.deadline, deadline)))


def give_time_back(t: Transition) -> None:
    """Give the attempt the time that it has by now: a deadline was estimated too early."""
    attempt = t.state.world.attempt
    assert attempt is not None
    _put(t, replace(attempt, deadline=_deadline_from(t, attempt.started)))


def _deadline_from(t: Transition, start: float) -> float:
    """Return when to give up: the preparation's time, counted from ``start``, is up, or the first member is gone."""
    return min(start + t.state.settings.config.job.prepare_timeout, _first_gone(t))


def _first_gone(t: Transition) -> float:
    """Return when the first member that holds state will be gone; infinity if none will."""
    evictions = (worker.eviction for worker in t.state.members)
    return min((notice.deadline for notice in evictions if notice is not None), default=math.inf)
