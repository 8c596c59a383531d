"""The coordinator's state machine: ``step(state, input) -> (state, actions)``. No clock, no sockets, no files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from liver_slurm.coordinator.core import (
    client_requests,
    eviction,
    handover,
    history,
    interruption,
    membership,
    node_release,
    planning,
    reconfiguration,
    standby_scaling,
)
from liver_slurm.coordinator.core import step_barrier as boundaries
from liver_slurm.coordinator.core.io import (
    Action,
    CapacitySeen,
    FromPeer,
    GivenBack,
    Input,
    Interrupted,
    LaunchRefused,
    LiveJobSeen,
    StopAsked,
    SuccessorAnswer,
)
from liver_slurm.coordinator.core.lifecycle import INTERRUPTED, close_when_alone, end
from liver_slurm.coordinator.core.state import Phase, RunState
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.protocol import messages
from liver_slurm.protocol.messages import (
    BoundaryVote,
    CancelRequest,
    CheckpointRequest,
    CheckpointWritten,
    Finished,
    Register,
    ResizeRequest,
    StatusRequest,
    WorkerEnded,
)
from liver_slurm.rundir import events

LAUNCH_RETRY = 30.0
"""Seconds until standby jobs are started again after the scheduler refused."""


def step(state: RunState, given: Input) -> tuple[RunState, list[Action]]:
    """The next state, and what is to be done, in order."""
    turn = Transition(state, given.time)
    if isinstance(given, FromPeer):
        _message(turn, given)
    elif isinstance(given, CapacitySeen):
        eviction.supply(turn, given.supply)
        standby_scaling.look(turn)
    elif isinstance(given, LaunchRefused):
        turn.update(launch_after=given.time + LAUNCH_RETRY)
        turn.emit(events.LaunchRefused(reason=given.error))
    elif isinstance(given, StopAsked):
        if handover.timed_out(state):
            end(turn, Phase.INTERRUPTED, INTERRUPTED, "the live job's time limit")
        else:
            end(turn, Phase.CANCELLED, 3, given.reason)
    elif isinstance(given, Interrupted):
        interruption.interrupt(turn, given)
    elif isinstance(given, LiveJobSeen):
        handover.seen(turn, given)
    elif isinstance(given, SuccessorAnswer):
        handover.answered(turn, given)
    elif isinstance(given, GivenBack):
        node_release.given(turn, given)
    else:
        _watch_time(turn, given.time - state.now)
    heartbeat = isinstance(given, FromPeer) and isinstance(given.message, messages.Heartbeat)
    history.update(turn, state, lives=not heartbeat)
    planning.advance(turn)
    close_when_alone(turn)
    return turn.state, turn.actions


# ---- messages ------------------------------------------------------------------------------------------------------


def _message(turn: Transition, given: FromPeer) -> None:
    message = given.message
    if isinstance(message, StatusRequest | ResizeRequest | CheckpointRequest | CancelRequest | WorkerEnded):
        client_requests.handle(turn, given.peer, message)
        return
    if isinstance(message, Register):
        membership.register(turn, given.peer, message)
        return
    worker = turn.state.workers.get(message.worker)
    if worker is None or worker.peer != given.peer:
        # Sent to a coordinator before this one, or by a process whose name another has taken.
        turn.reject("late")
        turn.answer(given.peer, messages.Alive(epoch=turn.state.settings.epoch))
        return
    turn.change_worker(worker.name, seen=turn.now)
    if turn.state.phase.over and not isinstance(message, messages.Heartbeat | messages.Leaving | messages.Failed):
        turn.reject("late")
        return
    _HANDLERS[type(message)](turn, message)


def _vote(turn: Transition, message: BoundaryVote) -> None:
    boundary = boundaries.vote(turn, message)
    if boundary is None:
        return
    if boundary.purpose == "cutover":
        reconfiguration.boundary_moved(turn)
    elif boundary.agreed:
        boundaries.confirm(turn, boundary, tuple(sorted(boundary.voters)))
        turn.update(checkpoint=None)
    elif boundary.step > turn.state.settings.config.train.steps:
        boundaries.withdraw(turn, "checkpoint")  # the run's end comes first, and may write one of its own


def _checkpoint_written(turn: Transition, message: CheckpointWritten) -> None:
    step, seconds, stall_s = message.step, message.seconds, message.stall_seconds
    if not message.ok:
        turn.emit(events.CheckpointFailed(step=step, seconds=seconds, stall_s=stall_s, error=message.error))
    else:
        turn.emit(events.CheckpointWritten(step=step, seconds=seconds, stall_s=stall_s, path=message.path))
        turn.update(save_seconds=message.seconds)
    interruption.saved(turn, message)


def _finished(turn: Transition, message: Finished) -> None:
    state = turn.state
    members_of_live = state.live.members if state.live else ()
    if message.worker not in members_of_live or message.step < state.settings.config.train.steps:
        turn.reject("impossible")
        return
    if state.workers[message.worker].finished:
        turn.reject("duplicate")
        return
    turn.change_worker(message.worker, finished=True, step=message.step)
    workers = turn.state.workers
    if all(member in workers and workers[member].finished for member in members_of_live):
        end(turn, Phase.FINISHED, 0, f"all {message.step} steps are trained")
    elif state.attempt is None or not state.attempt.committed:
        if state.attempt is not None:
            reconfiguration.abort(turn, "the run has reached its last step")
        boundaries.withdraw(turn, "cutover")
        boundaries.withdraw(turn, "checkpoint")
        turn.update(phase=Phase.FINISHING, reason="the last step is trained")


_HANDLERS: dict[type, Callable[[Transition, Any], None]] = {
    messages.Heartbeat: membership.heartbeat,
    messages.Notice: eviction.notice,
    messages.Leaving: membership.leaving,
    messages.Failed: membership.failed,
    messages.Prepared: reconfiguration.prepared,
    messages.Streamed: reconfiguration.streamed,
    messages.WorldEntered: reconfiguration.entered,
    messages.BoundaryVote: _vote,
    messages.CheckpointWritten: _checkpoint_written,
    messages.Finished: _finished,
}


# ---- time and capacity ---------------------------------------------------------------------------------------------


def _watch_time(turn: Transition, since_last: float) -> None:
    state, job = turn.state, turn.state.settings.config.job
    if since_last > job.lost_after / 2:
        # This process itself stood still: nobody's silence in that time means anything.
        for name, worker in state.workers.items():
            turn.change_worker(name, seen=worker.seen + since_last)
    membership.find_silent(turn)
    interruption.watch(turn)
    handover.advance(turn)
    node_release.advance(turn)
    attempt = turn.state.attempt
    if attempt is None or turn.now < attempt.deadline:
        return
    waited = f"after {turn.now - attempt.started:.1f} s"
    if not attempt.committed:
        heard = attempt.prepared if turn.state.phase is Phase.PREPARE else attempt.streamed
        missing = ", ".join(sorted(set(attempt.involved) - set(heard))) or "the old world's votes"
        reconfiguration.abort(turn, f"not ready {waited}; still missing: {missing}")
    else:
        missing = ", ".join(sorted(set(attempt.target.members) - set(attempt.entered)))
        end(turn, Phase.FAILED, 1, f"{missing} did not enter generation {attempt.target.generation} {waited}")
