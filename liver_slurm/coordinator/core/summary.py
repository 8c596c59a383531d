"""A reconfiguration as the event log tells it."""

from __future__ import annotations

from liver_slurm.coordinator.core.state import Attempt
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.rundir.events import CommitStats, Route


def route(attempt: Attempt) -> Route:
    """Who goes where."""
    old = attempt.source.members if attempt.source else ()
    new = attempt.target.members
    before, after = frozenset(old), frozenset(new)
    return {
        "source": str(attempt.source.layout) if attempt.source else "",
        "to": str(attempt.target.layout),
        "cause": attempt.cause,
        "members": new,
        "joiners": tuple(member for member in new if member not in before),
        "leavers": tuple(member for member in old if member not in after),
    }


def _mode(turn: Transition, attempt: Attempt) -> str:
    """What was done: overlap whose state had to wait for the pause was a pause."""
    schedule = attempt.schedule
    paused = schedule is not None and schedule.steps == 0 and schedule.wire_s > 0
    return "pause" if paused else turn.state.settings.config.stream.mode


def summary(turn: Transition, attempt: Attempt, step: int) -> CommitStats:
    """What the commit record says, once all have voted for the commit at ``step``."""
    votes = [vote.report for vote in attempt.streamed.values()]
    remote, local = sum(vote.bytes_received for vote in votes), sum(vote.bytes_local for vote in votes)
    source = attempt.source
    old_votes = [attempt.streamed[member].report for member in source.members] if source else []
    # A world that never trained a step stood still from its own beginning, where the pause before it ended.
    trained = source is None or source.step < step
    return CommitStats(
        **route(attempt),
        reason=attempt.reason,
        mode=_mode(turn, attempt),
        cutover_step=step,
        prepare_s=attempt.prepare_s,
        plan_s=max(vote.plan_seconds for vote in votes),
        stream_s=max(vote.seconds for vote in votes),
        bytes_moved=remote + local,
        bytes_remote=remote,
        bytes_local=local,
        bytes_early=sum(vote.bytes_early for vote in votes),
        bytes_gradients=sum(vote.bytes_gradients for vote in votes),
        hook_s=max(vote.hook_seconds for vote in votes),
        gradient_staging_bytes=max(vote.gradient_staging_bytes for vote in votes),
        staging_peak_bytes=max(vote.staging_peak_bytes for vote in votes),
        memory_peak_bytes=max(vote.memory_peak_bytes for vote in votes),
        state_peak_bytes=max(vote.state_peak_bytes for vote in votes),
        late_layers=max(vote.late_layers for vote in votes),
        digests_checked=sum(vote.digests_checked for vote in votes),
        paused_at=max(vote.paused_at for vote in old_votes) if trained else attempt.started,
        gap_s=max(vote.gap_seconds for vote in old_votes),
    )
