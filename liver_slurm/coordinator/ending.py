"""How a run ends: the outcome is decided once, everybody is told to leave, the process waits for them a little."""

from __future__ import annotations

from liver_slurm.control.messages import Abort, Leave
from liver_slurm.coordinator.interface import Finish
from liver_slurm.coordinator.records import AttemptAborted, Ended
from liver_slurm.coordinator.state import Phase
from liver_slurm.coordinator.turn import Turn

GOODBYE = 10.0
"""Seconds that workers have to leave once the outcome is decided."""


def end(turn: Turn, phase: Phase, code: int, reason: str) -> None:
    """Decide the run's outcome; what comes later does not change it."""
    state = turn.state
    if state.phase.over:
        return
    attempt = state.attempt
    if attempt is not None and not attempt.committed:
        generation = attempt.target.generation
        turn.journal(AttemptAborted(generation=generation, reason=reason))
        turn.send(attempt.involved, Abort(epoch=state.settings.epoch, generation=generation, reason=reason))
    turn.journal(Ended(code=code, reason=reason))
    turn.emit("run_ended", outcome=phase.value, exit_code=code, reason=reason, step=state.step)
    turn.send(state.workers, Leave(epoch=state.settings.epoch, reason=reason))
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


def close_when_alone(turn: Turn) -> None:
    """The process may end when all workers are gone, or have had time enough."""
    state = turn.state
    if state.outcome is None or state.closed:
        return
    if not state.workers or turn.now >= state.closing_deadline:
        turn.update(closed=True)
        turn.actions.append(Finish(*state.outcome))
