"""The coordinator's state machine: ``step(state, input) -> (state, actions)``. No clock, no sockets, no files.

An input goes to its handlers, in order. What they signal goes to the modules that react to it, before the next handler
has its turn. At the end, or after the last of several inputs that have come together, the run does what it would do by
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from liver_slurm.base.frozen import replace
from liver_slurm.coordinator.core import (
    abort_causes,
    admission,
    client_requests,
    detection,
    eviction,
    failure_recovery,
    guaranteed_job,
    history,
    lifecycle,
    membership,
    node_release,
    planning,
    reconfiguration,
    reminders,
    resize_queue,
    standby_scaling,
    step_barrier,
)
from liver_slurm.coordinator.core.io import (
    Action,
    CapacitySeen,
    CheckpointFound,
    FromPeer,
    GivenBack,
    GuaranteedJobSeen,
    HungUp,
    Input,
    Interrupted,
    Launched,
    LaunchRefused,
    StopAsked,
    SuccessorAnswer,
    Tick,
)
from liver_slurm.coordinator.core.records import Record
from liver_slurm.coordinator.core.signals import (
    Admitted,
    BarrierMoved,
    CapacityObserved,
    EvictionChanged,
    EvictionHeard,
    Heard,
    LastStepTrained,
    Registered,
    RunEnding,
    RunInterrupted,
    TimeIsUp,
    WorkersGone,
    WorkersLost,
    WorldCommitted,
    WorldStands,
)
from liver_slurm.coordinator.core.state import Lifecycle, RunPhase, RunState, Settings
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.protocol import messages as m

Handler = Callable[[Transition, Any], None]

HANDLERS: dict[type, tuple[Handler, ...]] = {
    # A worker's messages; see also UNREGISTERED and LAST_WORDS.
    m.Register: (admission.register,),
    m.Heartbeat: (membership.heartbeat,),
    m.Notice: (eviction.notice,),
    m.Leaving: (membership.leaving,),
    m.Failed: (membership.failed,),
    m.Prepared: (reconfiguration.prepared,),
    m.Streamed: (reconfiguration.streamed,),
    m.WorldEntered: (reconfiguration.entered,),
    m.BoundaryVote: (step_barrier.vote,),
    m.CheckpointWritten: (step_barrier.checkpoint_written, guaranteed_job.saved),
    m.Parked: (failure_recovery.parked,),
    m.Finished: (membership.finished,),
    # A client's.
    m.StatusRequest: (client_requests.status,),
    m.ResizeRequest: (client_requests.resize,),
    m.CheckpointRequest: (client_requests.checkpoint,),
    m.CancelRequest: (client_requests.cancel,),
    m.WorkerEnded: (client_requests.worker_ended, client_requests.acknowledge),
    # The scheduler's answers, the process's signals, and time.
    CapacitySeen: (standby_scaling.observe, standby_scaling.scale),
    Launched: (standby_scaling.launched,),
    LaunchRefused: (standby_scaling.launch_refused,),
    GuaranteedJobSeen: (guaranteed_job.seen,),
    SuccessorAnswer: (guaranteed_job.answered,),
    GivenBack: (node_release.given,),
    Interrupted: (guaranteed_job.interrupted,),
    StopAsked: (guaranteed_job.stop_asked,),
    HungUp: (detection.hung_up,),
    CheckpointFound: (failure_recovery.checkpoint_found,),
    Tick: (
        membership.extend_after_stall,
        membership.find_silent,
        eviction.find_outlived,
        detection.watch,
        detection.watch_joiners,
        step_barrier.watch_checkpoint,
        guaranteed_job.watch_last_checkpoint,
        guaranteed_job.advance,
        node_release.advance,
        abort_causes.watch_deadline,
        history.watch_windows,
    ),
}
"""Who handles each input: of messages from peers, the message."""

REACTIONS: dict[type, tuple[Handler, ...]] = {
    Admitted: (membership.admit,),
    Registered: (
        standby_scaling.registered,
        failure_recovery.registered,
        reminders.tell_left_attempt,
        resize_queue.hold_at_start,
        step_barrier.tell_left_open,
        reminders.tell_commit,
        membership.warm_up,
    ),
    Heard: (reminders.heard, failure_recovery.heard),
    WorkersGone: (membership.lose,),
    WorkersLost: (
        standby_scaling.workers_lost,
        detection.workers_lost,
        abort_causes.workers_lost,
        failure_recovery.workers_lost,
        planning.workers_lost,
    ),
    WorldStands: (failure_recovery.stands,),
    CapacityObserved: (eviction.compare,),
    EvictionHeard: (eviction.revise,),
    EvictionChanged: (
        standby_scaling.eviction_changed,
        abort_causes.eviction_changed,
        eviction.dismiss_or_welcome,
    ),
    BarrierMoved: (reconfiguration.barrier_moved,),
    WorldCommitted: (standby_scaling.world_committed, membership.world_committed, lifecycle.training_begins),
    LastStepTrained: (abort_causes.last_step_trained, lifecycle.last_step_trained),
    TimeIsUp: (guaranteed_job.time_is_up,),
    RunInterrupted: (abort_causes.run_interrupted, guaranteed_job.save_or_leave),
    RunEnding: (reconfiguration.run_ending, lifecycle.run_ending, step_barrier.run_ending),
}
"""Who reacts to each signal, in this order."""

FROM_CLIENTS = (m.StatusRequest, m.ResizeRequest, m.CheckpointRequest, m.CancelRequest, m.WorkerEnded)
UNREGISTERED = (*FROM_CLIENTS, m.Register)
"""Messages of senders that need not be registered workers."""
LAST_WORDS = (m.Heartbeat, m.Leaving, m.Failed)
"""Messages of workers that still count when the run is over."""
UNTOLD = (m.Heartbeat, m.StatusRequest)
"""Messages that are not kept in the story: there are too many, and they change little."""


def step(state: RunState, given: Input, *, planned: bool = True) -> tuple[RunState, list[Action]]:
    """Return the next state, and what is to be done, in order.

    Args:
        state: before it.
        given: the input.
        planned: also do what the run would do by itself. Otherwise :func:`plan` does, after all that is at hand: of
            hundreds of workers that come or go together each would make for a world of its own.
    """
    t = Transition(state, given.time)
    if isinstance(given, FromPeer):
        _message(t, given)
        heartbeat = isinstance(given.message, m.Heartbeat)
    else:
        if not isinstance(given, Tick):
            t.remember(given)
        _handle(t, given, HANDLERS[type(given)])
        heartbeat = False
    history.update(t, state, spans=not heartbeat, everybody=isinstance(given, Tick | CapacitySeen))
    return _done(t, planned=planned)


def plan(state: RunState, now: float) -> tuple[RunState, list[Action]]:
    """Do what the run would do by itself at time ``now``, after steps that have left it out."""
    return _done(Transition(state, now), planned=True)


def _done(t: Transition, *, planned: bool) -> tuple[RunState, list[Action]]:
    if planned:
        planning.advance(t)
        _settle(t)
    lifecycle.close_when_alone(t)
    return t.state, t.actions


def _message(t: Transition, given: FromPeer) -> None:
    message = given.message
    if not isinstance(message, UNTOLD):
        t.remember(message)
    if isinstance(message, UNREGISTERED):
        _handle(t, given, HANDLERS[type(message)])
        return
    if not membership.hear(t, given.peer, message):
        # Sent to a coordinator before this one, or by a process whose name another has taken.
        t.reject("late")
        t.answer(given.peer, m.Alive(epoch=t.state.settings.epoch, known=False))
    elif t.state.over and not isinstance(message, LAST_WORDS):
        t.reject("late")
    else:
        _handle(t, message, HANDLERS[type(message)])


def _handle(t: Transition, given: Any, handlers: tuple[Handler, ...]) -> None:
    for handle in handlers:
        handle(t, given)
        _settle(t)


def _settle(t: Transition) -> None:
    """Let the other modules react to what was signalled; what a reaction signals comes before the next reaction."""
    for signal in t.take_signals():
        for react in REACTIONS[type(signal)]:
            react(t, signal)
            _settle(t)


# ---- recovery: a run that is interrupted goes on where its journal ends ---------------------------------------------


def recover(records: Sequence[Record], settings: Settings, now: float) -> RunState:
    """Return the state in which a coordinator of ``settings`` begins at time ``now``.

    With a commit record the run is RECOVERING: the committed world is the live one, whether or not its members have
    heard so; they register and are told. An attempt without a commit record is over: its workers are told when they
    register. Training that is held for a request stays held. A run that was restarted since is STARTING, from the
    checkpoint that was chosen then; of the worlds before only their generation numbers are left, which are never used
    again.
    """
    state = RunState(settings=settings, now=now, lifecycle=Lifecycle(started=now))
    for record in records:
        state = state.apply(record)
    world, barriers = state.world, state.barriers
    if world.unresolved:
        generation = max(world.unresolved)
        world = replace(world, left_attempt=(generation, world.unresolved[generation]))
    barriers = barriers.left((goal.number, goal.at_step) for goal in state.resizes.goals)
    phase = RunPhase.STARTING if world.live is None else RunPhase.RECOVERING
    lifecycle = replace(state.lifecycle, phase=phase)
    damage = replace(state.damage, since=now) if state.damage.broken else state.damage
    return replace(state, world=world, barriers=barriers, lifecycle=lifecycle, damage=damage)
