"""The run's life cycle: its outcome is decided once, workers are told to leave, and the process waits for them."""

from __future__ import annotations

from liver_slurm.base.errors import ExitCode
from liver_slurm.base.frozen import replace
from liver_slurm.coordinator.core.io import Finish
from liver_slurm.coordinator.core.records import Ended
from liver_slurm.coordinator.core.signals import LastStepTrained, RunEnding, WorldCommitted
from liver_slurm.coordinator.core.state import Lifecycle, RunPhase, RunState
from liver_slurm.coordinator.core.transition import Transition, Writer
from liver_slurm.coordinator.core.workers import Worker
from liver_slurm.protocol.messages import Leave
from liver_slurm.rundir import events

EXIT_CODES = {
    RunPhase.FINISHED: ExitCode.DONE,
    RunPhase.FAILED: ExitCode.FAILED,
    RunPhase.STOPPED: ExitCode.FAILED,
    RunPhase.CANCELLED: ExitCode.CANCELLED,
    RunPhase.INTERRUPTED: ExitCode.CANCELLED,
    RunPhase.HANDED_OVER: ExitCode.HANDED_OVER,
}
"""What the coordinator's process ends with when its run ends, or goes on without it."""
GOODBYE = 10.0
"""Seconds that workers have to leave once the outcome is decided."""

_write = Writer(Lifecycle, __name__)


def _enter(t: Transition, phase: RunPhase) -> None:
    _write(t, replace(t.state.lifecycle, phase=phase))


def training_begins(t: Transition, _: WorldCommitted) -> None:
    """Note that the run trains, now that world 0 is committed."""
    if t.state.lifecycle.phase is RunPhase.STARTING:
        _enter(t, RunPhase.TRAINING)


def recovered(t: Transition) -> None:
    """Note that the run trains: every member of the live world has registered with this coordinator."""
    _enter(t, RunPhase.TRAINING)


def go_on(t: Transition) -> None:
    """Train on, though members have trained the last step: one is lost that has not."""
    if t.state.lifecycle.phase is RunPhase.FINISHING:
        _enter(t, RunPhase.TRAINING)


def last_step_trained(t: Transition, news: LastStepTrained) -> None:
    """End the run when all members have trained its last step; until then no other world is begun."""
    if news.by_all:
        trained = f"all {news.step} steps are trained" if news.step > 1 else "its only step is trained"
        done, error = news.reason or trained, t.state.barriers.save_error
        if error and t.state.settings.config.checkpoint.at_end:
            end(t, RunPhase.FAILED, f"{done}, but the last checkpoint could not be written: {error}")
        else:
            end(t, RunPhase.FINISHED, done)
    elif t.state.world.attempt is None and t.state.lifecycle.phase is not RunPhase.FINISHING:
        _enter(t, RunPhase.FINISHING)
        _write(t, replace(t.state.lifecycle, finishing=t.now))
        t.explain("the last step is trained")


# ---- the end -------------------------------------------------------------------------------------------------------


def end(t: Transition, phase: RunPhase, reason: str) -> None:
    """Decide the run's outcome; what comes later does not change it.

    A job that Slurm takes away and starts again loses its workers, which is no failure of the run.
    """
    if t.state.over:
        return
    interruption = t.state.interruption
    if phase is RunPhase.FAILED and interruption.resumes:
        phase, reason = RunPhase.INTERRUPTED, interruption.reason
    t.signal(RunEnding(phase, int(EXIT_CODES[phase]), reason))


def run_ending(t: Transition, news: RunEnding) -> None:
    """Write the outcome down, and tell those to leave who have no part in what comes."""
    state = t.state
    if state.over:
        return
    step, reason = state.step, news.reason
    if news.phase is RunPhase.INTERRUPTED:
        t.emit(events.Interrupted(reason=reason, step=step))
    elif news.phase is RunPhase.HANDED_OVER:
        t.emit(events.HandedOver(reason=reason, step=step))
    else:
        t.journal(Ended(code=news.code, reason=reason))
        t.emit(events.RunEnded(outcome=news.phase.value, exit_code=news.code, reason=reason, step=step))
    deadline = t.now + GOODBYE
    outcome = (news.code, reason)
    _write(t, replace(state.lifecycle, phase=news.phase, outcome=outcome, closing_deadline=deadline))
    t.explain(reason)
    going = [worker.name for worker in state.membership.workers.values() if must_go(t.state, worker)]
    t.send(going, Leave(epoch=state.settings.epoch, reason=reason))


def must_go(state: RunState, worker: Worker) -> bool:
    """Return whether the outcome is decided and a worker has no part in what comes.

    Idle standbys and successors may have.
    """
    phase = state.lifecycle.phase
    if not phase.over:
        return False
    of_our_job = worker.role == "live" and state.settings.job_id in ("", worker.job_id)
    if phase is RunPhase.HANDED_OVER:
        return of_our_job
    if phase is not RunPhase.INTERRUPTED:
        return True
    return of_our_job or worker.generation >= 0 or worker.name in state.world.names


def close_when_alone(t: Transition) -> None:
    """End the process when all workers are gone, or have had time enough: a copy of the last checkpoint takes its own.

    All else of a finished run is done by then, and who copies says so as long as it does.
    """
    state, lifecycle = t.state, t.state.lifecycle
    if lifecycle.outcome is None or lifecycle.closed:
        return
    staying = [worker for worker in state.membership.workers.values() if must_go(state, worker)]
    if staying and t.now < lifecycle.closing_deadline:
        return
    copying = [worker.name for worker in staying if worker.copying]
    if copying and lifecycle.phase is RunPhase.FINISHED and not lifecycle.hurried:
        t.explain(f"{lifecycle.outcome[1]}; {', '.join(copying)} still copies the last checkpoint to its second place")
        return
    _write(t, replace(lifecycle, closed=True))
    over = lifecycle.phase.ends_run
    t.actions.append(Finish(*lifecycle.outcome, over=over, successor="" if over else state.handover.successor))


def hurry(t: Transition) -> None:
    """Wait no longer for copies of a checkpoint, once the outcome is decided."""
    _write(t, replace(t.state.lifecycle, hurried=t.state.over))
