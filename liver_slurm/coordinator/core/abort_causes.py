"""Abort causes: the news that make a reconfiguration be given up before its commit record, or hurry."""

from __future__ import annotations

from liver_slurm.coordinator.core import eviction, lifecycle, reconfiguration, resize_queue, step_barrier
from liver_slurm.coordinator.core.io import Tick
from liver_slurm.coordinator.core.signals import (
    EvictionChanged,
    LastStepTrained,
    RunInterrupted,
    WorkerGone,
    WorkersLost,
)
from liver_slurm.coordinator.core.state import RunPhase
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.coordinator.core.workers import Eviction
from liver_slurm.coordinator.core.worlds import Attempt
from liver_slurm.rundir.worker_names import named

_VOTES = "the old world's votes"


def workers_lost(t: Transition, news: WorkersLost) -> None:
    """Give an attempt up that has lost a worker."""
    pending = t.state.world.pending
    lost = [one for one in news.workers if pending is not None and one.worker.name in pending.voters]
    if lost:
        reconfiguration.abort(t, f"{named([one.worker.name for one in lost])} lost: {lost[0].reason}")


def eviction_changed(t: Transition, news: EvictionChanged) -> None:
    """Let an eviction notice join the attempt that is under way, or end it; one that is taken back may end it, too."""
    pending, name = t.state.world.pending, news.worker.name
    if pending is None:
        return
    if news.now is None:
        assert news.before is not None
        _stays(t, pending, name, news.before)
        return
    if news.before is not None and pending.deadline == news.before.deadline < news.now.deadline:
        reconfiguration.give_time_back(t)  # what had to be done by then has until the nearest deadline that is left
    if pending.source is None:
        return
    if name in pending.joined and _is_waited_for(t, pending, news.now):
        reconfiguration.hurry(t, t.now + (news.now.deadline - t.now) / 2)
    elif name in pending.joined:
        reconfiguration.abort(t, f"{name} will go away: {news.now.reason}")
    elif name in t.state.world.names:
        _leaves_with(t, name, news.now)


def _is_waited_for(t: Transition, pending: Attempt, notice: Eviction) -> bool:
    """Return whether an attempt goes first that has a member which is to leave, and the next one is without it.

    All are prepared, others wait to leave with it, and after it there is time for another change, twice over. Where
    many are wanted one after another, each would else undo what is nearly done, and who was wanted first would wait for
    the last.
    """
    if pending.cause != "notice" or not pending.ready or not t.state.history.measured:
        return False
    if notice.deadline - t.now <= 2 * eviction.lead(t):
        return False
    others = t.state.membership.of(pending.involved)
    return any(other.eviction is not None and other.name not in pending.joined for other in others)


def _stays(t: Transition, pending: Attempt, name: str, before: Eviction) -> None:
    """Give an attempt up that leaves a worker out which stays after all, if it has no other reason."""
    if name not in t.state.world.names or name in pending.joined:
        return
    others = t.state.membership.of(pending.involved)
    if pending.cause in ("notice", "successor") and all(other.eviction is None for other in others):
        reconfiguration.abort(t, f"{name} stays: {before.reason} no longer holds")


def _leaves_with(t: Transition, name: str, notice: Eviction) -> None:
    """Let a worker leave with the reconfiguration under way, unless that is scheduled for too late a step."""
    held = t.state.barriers.cutover
    step = held.step if held is not None else t.state.step
    if resize_queue.seconds_until(t.state, step) > (notice.deadline - t.now) / 2:
        reconfiguration.abort(t, f"{name} will go away before step {step}: {notice.reason}")
    else:
        reconfiguration.hurry(t, notice.deadline)


def last_step_trained(t: Transition, news: LastStepTrained) -> None:
    """Give the next world up when the run ends in this one, and let nobody wait at a barrier."""
    attempt = t.state.world.attempt
    if news.by_all or (attempt is not None and attempt.committed):
        return
    if attempt is not None:
        reconfiguration.abort(t, "the run has reached its last step")
    step_barrier.withdraw(t, "cutover")
    step_barrier.withdraw(t, "checkpoint")


def run_interrupted(t: Transition, news: RunInterrupted) -> None:
    """Give the next world up when the guaranteed job's nodes are taken, and let nobody wait for a scheduled one."""
    pending = t.state.world.pending
    if pending is not None and pending.source is not None:
        reconfiguration.abort(t, news.reason)
    held = t.state.barriers.cutover
    if held is not None and not held.confirmed:
        step_barrier.withdraw(t, "cutover")  # the last checkpoint comes behind it


def watch_deadline(t: Transition, _: Tick) -> None:
    """Give up what is not ready when its time is over; whoever does not enter a committed world is lost to it."""
    attempt = t.state.world.attempt
    if attempt is None or t.now < attempt.deadline:
        return
    waited, missing = f"after {t.now - attempt.started:.1f} s", ", ".join(attempt.missing)
    if not attempt.committed:
        reconfiguration.abort(t, f"not ready {waited}; still missing: {missing or _VOTES}")
        return
    failure = f"did not enter generation {attempt.target.generation} {waited}"
    there = t.state.membership.of(attempt.missing)
    if not there or not attempt.entered:
        lifecycle.end(t, RunPhase.FAILED, f"{missing} {failure}")
        return
    for worker in there:
        t.gone(WorkerGone(worker.name, f"it {failure}", how="stuck", after=t.now - attempt.committed_at))
