"""How a run ends: the outcome is decided once, everybody is told to leave, the process waits for them a little."""

from __future__ import annotations

from liver_slurm.coordinator.core.io import Finish
from liver_slurm.coordinator.core.records import AttemptAborted, Ended
from liver_slurm.coordinator.core.state import Phase, RunState, Worker
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.protocol.messages import Abort, Leave
from liver_slurm.rundir import events

INTERRUPTED = 3
"""Exit code of a coordinator whose job Slurm takes away: as for a cancelled run, it is not started again."""
HANDED_OVER = 4
"""Exit code of a coordinator after which another job's goes on with the run."""
GOODBYE = 10.0
"""Seconds that workers have to leave once the outcome is decided."""


def end(turn: Transition, phase: Phase, code: int, reason: str) -> None:
    """Decide the run's outcome; what comes later does not change it.

    A job that Slurm takes away and starts again loses its workers, which is no failure of the run.
    """
    state = turn.state
    if state.phase.over:
        return
    if phase is Phase.FAILED and state.interrupted_until is not None and not state.interrupted_for_good:
        phase, code, reason = Phase.INTERRUPTED, INTERRUPTED, state.interrupted
    attempt = state.attempt
    if attempt is not None and not attempt.committed:
        generation = attempt.target.generation
        turn.journal(AttemptAborted(generation=generation, reason=reason))
        turn.send(attempt.involved, Abort(epoch=state.settings.epoch, generation=generation, reason=reason))
    if phase is Phase.INTERRUPTED:
        turn.emit(events.Interrupted(reason=reason, step=state.step))
    elif phase is Phase.HANDED_OVER:
        turn.emit(events.HandedOver(reason=reason, step=state.step))
    else:
        turn.journal(Ended(code=code, reason=reason))
        turn.emit(events.RunEnded(outcome=phase.value, exit_code=code, reason=reason, step=state.step))
    turn.update(
        phase=phase,
        outcome=(code, reason),
        reason=reason,
        attempt=None,
        cutover=None,
        checkpoint=None,
        checkpoint_wanted=False,
        requests=(),
        closing_deadline=turn.now + GOODBYE,
    )
    going = [worker.name for worker in state.workers.values() if must_go(turn.state, worker)]
    turn.send(going, Leave(epoch=state.settings.epoch, reason=reason))


def must_go(state: RunState, worker: Worker) -> bool:
    """The outcome is decided, and this worker has no part in what comes; idle standbys and successors have."""
    of_our_job = worker.role == "live" and state.settings.job_id in ("", worker.job_id)
    if state.phase is Phase.HANDED_OVER:
        return of_our_job
    if state.phase is not Phase.INTERRUPTED:
        return state.outcome is not None
    return of_our_job or worker.generation >= 0 or (state.live is not None and worker.name in state.live.members)


def close_when_alone(turn: Transition) -> None:
    """The process may end when all workers are gone, or have had time enough."""
    state = turn.state
    if state.outcome is None or state.closed:
        return
    if not any(must_go(state, worker) for worker in state.workers.values()) or turn.now >= state.closing_deadline:
        turn.update(closed=True)
        following = state.live_job.successor if state.live_job is not None else None
        successor = following.job_id if following is not None and not state.phase.ends_run else ""
        turn.actions.append(Finish(*state.outcome, over=state.phase.ends_run, successor=successor))
