"""The way from one world to the next: PREPARE → STREAM → CUTOVER → RETIRE, and ABORT from anywhere before the commit.

World 0 takes the same way without a source: there is nothing to stop and nothing to stream, so the commit follows
Prepared.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import msgspec

from liver_slurm.coordinator.core import resize_queue
from liver_slurm.coordinator.core import step_barrier as boundaries
from liver_slurm.coordinator.core.lifecycle import end
from liver_slurm.coordinator.core.records import AttemptAborted, AttemptStarted, Committed, Entered
from liver_slurm.coordinator.core.state import Attempt, Phase
from liver_slurm.coordinator.core.summary import route, summary
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import World
from liver_slurm.policy import stream_schedule
from liver_slurm.policy.types import Backoff, ResizeGoal
from liver_slurm.protocol.messages import Abort, Commit, Leave, Prepare, Prepared, Streamed, WorldEntered
from liver_slurm.rundir import events

FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 60.0
"""Seconds before the same target world is tried again; doubled with each failure."""
REQUEST_TRIES = 3
"""After so many failed reconfigurations an explicit request is given up."""


# ---- PREPARE -------------------------------------------------------------------------------------------------------


def begin(
    turn: Transition,
    layout: Layout,
    members: tuple[str, ...],
    cause: Literal["start", "notice", "request", "capacity", "successor"],
    reason: str,
    request: ResizeGoal | None = None,
) -> None:
    """Start the way to a world of ``members`` in rank order; its generation number was never used before."""
    state, settings = turn.state, turn.state.settings
    assert state.attempt is None, "reconfigurations never overlap"
    source, generation = state.live, state.next_generation
    target = World(generation, layout, members, step=settings.start_step)
    attempt = Attempt(
        target=target,
        source=source,
        reason=reason,
        cause=cause,
        started=turn.now,
        deadline=deadline_from(
            turn, turn.now + (resize_queue.seconds_until(turn, request.at_step) if request else 0.0)
        ),
        request=request.number if request else -1,
    )
    held = state.cutover
    if held is not None and held.request != attempt.request:
        boundaries.withdraw(turn, "cutover")
    turn.update(attempt=attempt, next_generation=generation + 1, phase=Phase.PREPARE, replan=False, replan_at=None)
    old = source.members if source else ()
    turn.journal(
        AttemptStarted(generation=generation, layout=str(layout), members=members, source_members=old, reason=reason)
    )
    if source is not None:
        turn.emit(events.ReconfigurationStarted(**route(attempt), reason=reason), generation)
    message = Prepare(
        epoch=settings.epoch,
        generation=generation,
        layout=str(layout),
        members=list(members),
        source_generation=source.generation if source else -1,
        source_layout=str(source.layout) if source else "",
        source_members=list(old),
        store_host=settings.store_host,
        store_port=settings.store_port,
        checkpoint="" if source else settings.checkpoint,
        hosts={name: state.workers[name].host for name in attempt.involved if name in state.workers} if source else {},
    )
    turn.send(attempt.involved, message)


def prepared(turn: Transition, message: Prepared) -> None:
    """One worker has built its part of the target world, or could not."""
    attempt = turn.state.attempt
    if attempt is None or attempt.committed or message.generation != attempt.target.generation:
        return turn.reject("late")
    if message.worker not in attempt.involved:
        return turn.reject("impossible")
    if message.worker in attempt.prepared:
        return turn.reject("duplicate")
    if not message.ok:
        return abort(turn, f"{message.worker} could not prepare: {message.error}")
    attempt = replace(attempt, prepared={**attempt.prepared, message.worker: message})
    turn.update(attempt=attempt)
    if len(attempt.prepared) < len(attempt.involved):
        return None
    attempt = replace(attempt, prepare_s=turn.now - attempt.started)
    turn.update(attempt=attempt)
    if attempt.source is None:
        return commit(turn, attempt, attempt.target.step)
    attempt = _schedule(turn, attempt)
    plan = attempt.schedule
    told = events.ReconfigurationPrepared(prepare_s=attempt.prepare_s, reason=attempt.reason)
    if plan is not None:
        told = msgspec.structs.replace(told, stream_steps=plan.steps, wire_s=plan.wire_s, reason=plan.reason)
    turn.emit(told, attempt.target.generation)
    return _ask_to_stop(turn, attempt)


# ---- STREAM --------------------------------------------------------------------------------------------------------


def _ask_to_stop(turn: Transition, attempt: Attempt) -> None:
    """All are prepared: stop training at a step that all agree on, unless they are asked to already."""
    held, checkpoint = turn.state.cutover, turn.state.checkpoint
    if held is None:
        after_checkpoint = checkpoint.step + 1 if checkpoint is not None else 0
        step = boundaries.next_step(turn, at_least=after_checkpoint) + (
            attempt.schedule.steps if attempt.schedule else 0
        )
        boundaries.propose(turn, "cutover", step, generation=attempt.target.generation, request=attempt.request)
    boundary_moved(turn)


def _schedule(turn: Transition, attempt: Attempt) -> Attempt:
    """In mode overlap: from which step on state streams; the attempt's deadline moves with it."""
    state, config = turn.state, turn.state.settings.config
    if config.stream.mode != "overlap":
        return attempt
    now_at = boundaries.next_step(turn)
    until = state.cutover.step if state.cutover is not None else config.train.steps - 1
    chosen = stream_schedule.schedule(
        stream_schedule.wire_seconds(attempt.prepared.values()),
        resize_queue.seconds_until(turn, state.step + 1),
        _gone(turn) - turn.now,
        max(0, until - now_at),
    )
    ahead = resize_queue.seconds_until(turn, until if state.cutover is not None else now_at + chosen.steps)
    attempt = replace(attempt, schedule=chosen, deadline=deadline_from(turn, turn.now + ahead + chosen.exposed_s))
    turn.update(attempt=attempt)
    return attempt


def boundary_moved(turn: Transition) -> None:
    """The cutover's boundary got a vote or a new step: go on, wait, or give up."""
    state, attempt = turn.state, turn.state.attempt
    held = state.cutover
    if held is None or held.confirmed:
        return
    if held.step >= state.settings.config.train.steps:
        boundaries.withdraw(turn, "cutover")
        if attempt is not None and not attempt.committed:
            abort(turn, "the run ends before the new world could take over")
        return
    ready = attempt is not None and not attempt.committed and len(attempt.prepared) == len(attempt.involved)
    if attempt is not None and ready and held.agreed:
        begin = held.step - attempt.schedule.steps if attempt.schedule is not None else -1
        boundaries.confirm(turn, held, attempt.involved, attempt.target.generation, begin)
        turn.enter(Phase.STREAM)


def streamed(turn: Transition, message: Streamed) -> None:
    """One worker has moved its state and compared digests: a vote for or against the commit."""
    attempt, held = turn.state.attempt, turn.state.cutover
    if attempt is None or attempt.committed or message.generation != attempt.target.generation:
        return turn.reject("late")
    if message.worker not in attempt.involved or (message.ok and (held is None or not held.confirmed)):
        return turn.reject("impossible")
    if not message.ok:
        # In mode overlap also after a yes: its first step in the new world failed.
        return abort(turn, f"{message.worker} could not stream: {message.error}")
    if message.worker in attempt.streamed:
        return turn.reject("duplicate")
    attempt = replace(attempt, streamed={**attempt.streamed, message.worker: message})
    turn.update(attempt=attempt)
    if len(attempt.streamed) == len(attempt.involved) and held is not None:
        stream_s = max(vote.report.seconds for vote in attempt.streamed.values())
        told = events.ReconfigurationStreamed(stream_s=stream_s, reason=attempt.reason)
        turn.emit(told, attempt.target.generation)
        commit(turn, attempt, held.step)
    return None


# ---- CUTOVER -------------------------------------------------------------------------------------------------------


def commit(turn: Transition, attempt: Attempt, step: int) -> None:
    """Write the commit record, then tell everybody. The target world is the live one from here on."""
    target, source = replace(attempt.target, step=step), attempt.source
    stats = None if source is None else summary(turn, attempt, step)
    deadline = turn.now + turn.state.settings.config.job.prepare_timeout
    attempt = replace(attempt, target=target, committed=True, committed_at=turn.now, stats=stats, deadline=deadline)
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
    )
    turn.journal(record)
    turn.update(attempt=attempt, live=target, cutover=None, backoff=None, phase=Phase.CUTOVER)
    if attempt.request >= 0:
        resize_queue.close(turn, attempt.request, fulfilled=True)
    # Before they hear of the commit, so that members stop also at the very step that the new world begins with.
    resize_queue.hold(turn, told=False)
    turn.send(attempt.involved, commit_message(turn, target))
    _dismiss_departing(turn)


def commit_message(turn: Transition, world: World) -> Commit:
    """The Commit of a world whose commit record is written."""
    return Commit(epoch=turn.state.settings.epoch, generation=world.generation, step=world.step)


def entered(turn: Transition, message: WorldEntered) -> None:
    """One member begins the first forward pass of the new world."""
    attempt = turn.state.attempt
    if attempt is None or not attempt.committed or message.generation != attempt.target.generation:
        return turn.reject("late")
    if message.worker not in attempt.target.members or message.step != attempt.target.step:
        return turn.reject("impossible")
    if message.worker in attempt.entered:
        return turn.reject("duplicate")
    turn.change_worker(message.worker, generation=message.generation)
    attempt = replace(attempt, entered={**attempt.entered, message.worker: message})
    turn.update(attempt=attempt)
    if len(attempt.entered) == len(attempt.target.members):
        _retire(turn, attempt)
    return None


def stands(turn: Transition, worker: str) -> None:
    """A member of the new world was heard of in it, where training stands at its first step for the next resize."""
    attempt = turn.state.attempt
    if attempt is None or not attempt.committed or not resize_queue.stands_at_start(turn.state):
        return
    target = attempt.target
    if worker in target.members and worker not in attempt.entered:
        entered(turn, WorldEntered(worker=worker, generation=target.generation, step=target.step, time=turn.now))


def _retire(turn: Transition, attempt: Attempt) -> None:
    """Everybody trains in the new world: what is left is to say so."""
    turn.enter(Phase.RETIRE)
    target = attempt.target
    turn.journal(Entered(generation=target.generation))
    if attempt.stats is not None:
        began = max(message.time for message in attempt.entered.values())
        gate_s = max(message.gate_seconds for message in attempt.entered.values())
        done = attempt.stats.committed(target.generation, turn.now, began, gate_s)
        turn.update(last_reconfiguration=done)
        turn.emit(done)
    turn.emit(events.WorldLive(layout=str(target.layout), members=target.members, step=target.step))
    turn.update(attempt=None, phase=Phase.STEADY, reason=attempt.reason)
    turn.stir()


# ---- ABORT ---------------------------------------------------------------------------------------------------------


def abort(turn: Transition, reason: str) -> None:
    """Give the target world up; the live world trains on as if nothing had happened."""
    attempt = turn.state.attempt
    assert attempt is not None
    assert not attempt.committed, "after the commit record there is no way back"
    generation = attempt.target.generation
    turn.journal(AttemptAborted(generation=generation, reason=reason))
    turn.send(attempt.involved, Abort(epoch=turn.state.settings.epoch, generation=generation, reason=reason))
    turn.update(attempt=None)
    if attempt.source is None:
        turn.emit(events.WorldFailed(reason=reason), generation)
        end(turn, Phase.FAILED, 1, f"the first world, generation {generation}, could not be formed: {reason}")
        return
    held = turn.state.cutover
    keep = held is not None and held.request >= 0 and held.request == attempt.request and not held.confirmed
    if not (keep and held is not None and held.step == resize_queue.at_step(turn, held.request)):
        boundaries.withdraw(turn, "cutover")
    turn.emit(events.ReconfigurationAborted(reason=reason, **route(attempt)), generation)
    _back_off(turn, attempt)
    turn.update(phase=Phase.STEADY, reason=f"aborted: {reason}")
    turn.stir()


def _back_off(turn: Transition, attempt: Attempt) -> None:
    target, last = attempt.target, turn.state.backoff
    same = last is not None and (last.layout, last.members) == (target.layout, target.members)
    failures = last.failures + 1 if last is not None and same else 1
    wait = min(FIRST_BACKOFF * 2 ** (failures - 1), LONGEST_BACKOFF)
    turn.update(backoff=Backoff(target.layout, target.members, turn.now + wait, failures))
    goals = [
        replace(goal, failures=goal.failures + 1) if goal.number == attempt.request else goal
        for goal in turn.state.requests
    ]
    turn.update(requests=tuple(goals))
    for goal in goals:
        if goal.failures >= REQUEST_TRIES:
            resize_queue.give_up(turn, goal, f"{goal.failures} reconfigurations for it were aborted")


# ---- helpers -------------------------------------------------------------------------------------------------------


def deadline_from(turn: Transition, start: float) -> float:
    """When to give up: the preparation's time, counted from ``start``, is up, or :func:`_gone`."""
    return min(start + turn.state.settings.config.job.prepare_timeout, _gone(turn))


def _gone(turn: Transition) -> float:
    """When the first member that holds state will be gone; infinity if none will."""
    state = turn.state
    members = state.live.members if state.live else ()
    departures = (state.workers[member].departure for member in members if member in state.workers)
    return min((departure.deadline for departure in departures if departure is not None), default=math.inf)


def _dismiss_departing(turn: Transition) -> None:
    """Those with a notice are in no world any more: they leave, so that Slurm has its node back in a second."""
    members = turn.state.live.members if turn.state.live else ()
    for worker in list(turn.state.workers.values()):
        departure = worker.departure
        if departure is None or departure.returns or worker.dismissed:
            continue
        if worker.name not in members:
            dismiss(turn, worker.name, departure.reason)


def dismiss(turn: Transition, name: str, reason: str) -> None:
    """Tell a worker to exit."""
    turn.send([name], Leave(epoch=turn.state.settings.epoch, reason=reason))
    turn.change_worker(name, dismissed=True)
