"""Interruption: Slurm takes the guaranteed job's nodes. Save what was reached, then leave at once."""

from __future__ import annotations

from liver_slurm.coordinator.core import lifecycle, step_barrier
from liver_slurm.coordinator.core.io import Interrupted, Tick
from liver_slurm.coordinator.core.state import Interruption, RunPhase
from liver_slurm.coordinator.core.transition import RunInterrupted, TimeIsUp, Transition, Writer
from liver_slurm.protocol.messages import CheckpointWritten
from liver_slurm.rundir import events

SAVING = 20.0
"""Seconds that the last checkpoint may take. Slurm kills after KillWait, 30 s by default; leaving frees the nodes."""

_write = Writer(Interruption, __name__)


def interrupted(t: Transition, given: Interrupted) -> None:
    """Save, and leave once the job is in the queue again.

    While only its grace time runs the workers stay: a job that ends by itself in it is not started again.
    """
    _begin(t, given.reason, t.now + SAVING if given.requeued else None, for_good=False)


def time_is_up(t: Transition, news: TimeIsUp) -> None:
    """Save and leave before the guaranteed job's time limit ends it."""
    _begin(t, news.reason, news.until, for_good=not news.resumes)


def _begin(t: Transition, reason: str, until: float | None, *, for_good: bool) -> None:
    state = t.state
    if state.over or state.interruption.until is not None:
        return
    t.emit(events.GuaranteedJobTaken(reason=reason, step=state.step))
    _write(t, Interruption(reason, state.step, until, for_good))
    t.signal(RunInterrupted(reason))


def save_or_leave(t: Transition, _: RunInterrupted) -> None:
    """Write a last checkpoint, or leave at once if there is nothing to save or nobody who could."""
    live = t.state.world.live
    step_barrier.want_checkpoint(t, wanted=live is not None)
    if live is None or t.state.lifecycle.phase is RunPhase.RECOVERING:
        leave(t)


def saved(t: Transition, message: CheckpointWritten) -> None:
    """Leave when the last checkpoint that was wanted is written, or has failed."""
    interruption = t.state.interruption
    if interruption.until is not None and message.step >= interruption.at_step:
        leave(t)


def watch(t: Transition, _: Tick) -> None:
    """Leave when the time for the last checkpoint is up."""
    until = t.state.interruption.until
    if until is not None and t.now >= until:
        leave(t)


def leave(t: Transition) -> None:
    """End this coordinator and its workers, not the run."""
    interruption = t.state.interruption
    if interruption.until is None:
        return
    if interruption.for_good:
        error = t.state.barriers.save_error
        unsaved = f"; the last checkpoint could not be written: {error}" if error else ""
        lifecycle.end(t, RunPhase.STOPPED, f"{interruption.reason}{unsaved}; {t.state.how_to_continue}")
    else:
        lifecycle.end(t, RunPhase.INTERRUPTED, interruption.reason)
