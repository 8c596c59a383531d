"""Slurm takes the live job's nodes and will start the job again: save what was reached, then leave at once."""

from __future__ import annotations

from liver_slurm.coordinator.core import reconfiguration
from liver_slurm.coordinator.core.io import Interrupted
from liver_slurm.coordinator.core.lifecycle import INTERRUPTED, end
from liver_slurm.coordinator.core.state import Phase
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.protocol.messages import CheckpointWritten
from liver_slurm.rundir import events

SAVING = 20.0
"""Seconds that the last checkpoint may take. Slurm kills after KillWait, 30 s by default; leaving frees the nodes."""


def interrupt(turn: Transition, given: Interrupted) -> None:
    """Save, and once the job is in the queue again leave.

    While only its grace time runs the workers stay: a job that ends by itself in it is not started again.
    """
    state = turn.state
    if state.phase.over or state.interrupted_until is not None:
        return
    turn.emit(events.LiveJobTaken(reason=given.reason, step=state.step))
    if state.attempt is not None and not state.attempt.committed and state.attempt.source is not None:
        reconfiguration.abort(turn, given.reason)
    turn.update(
        interrupted=given.reason,
        interrupted_at=state.step,
        interrupted_until=turn.now + SAVING if given.requeued else None,
        checkpoint_wanted=state.live is not None,
    )
    if state.live is None or state.phase is Phase.RECOVERING:
        leave(turn)


def saved(turn: Transition, message: CheckpointWritten) -> None:
    """A checkpoint is written, or has failed: there is nothing more to wait for if it was the last one wanted."""
    state = turn.state
    if state.interrupted_until is not None and message.step >= state.interrupted_at:
        leave(turn)


def watch(turn: Transition) -> None:
    """Leave when the time for the last checkpoint is up."""
    until = turn.state.interrupted_until
    if until is not None and turn.now >= until:
        leave(turn)


def leave(turn: Transition) -> None:
    """End this coordinator and its workers, not the run."""
    state = turn.state
    if state.interrupted_until is not None and state.interrupted_for_good:
        how = f"continue from the newest checkpoint: liver-slurm submit --resume {state.settings.run_dir}"
        end(turn, Phase.STOPPED, 1, f"{state.interrupted}; {how}")
    elif state.interrupted_until is not None:
        end(turn, Phase.INTERRUPTED, INTERRUPTED, state.interrupted)
