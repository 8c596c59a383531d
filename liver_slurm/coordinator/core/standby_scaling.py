"""Carrying out what :mod:`capacity` decides: standby jobs are started and ended."""

from __future__ import annotations

from liver_slurm.coordinator.core import capacity, handover, reconfiguration
from liver_slurm.coordinator.core.io import Launch, Release
from liver_slurm.coordinator.core.state import Phase, RunState
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.rundir import events


def look(turn: Transition) -> None:
    """The scheduler was asked: start and end standby jobs as its answer suggests."""
    state = turn.state
    busy = state.phase in (Phase.FINISHING, Phase.RECOVERING) or state.phase.over or state.interrupted
    if state.supply is None or busy:
        return
    decision, reason = capacity.decide(view(state), state.settings.config)
    turn.update(useless_since=decision.useless_since)
    for job_id in decision.end:
        _release(turn, job_id, reason)
    if turn.now < state.launch_after:
        return
    for order in decision.start:
        turn.actions.append(Launch(order.count, order.unit, order.partition))
        turn.emit(events.StandbyLaunch(count=order.count, unit=order.unit, partition=order.partition, reason=reason))


def view(state: RunState) -> capacity.View:
    """What the decision is made from."""
    assert state.supply is not None
    apart = handover.kept_out(state)  # the successor's workers take the place of ours
    live = [
        worker
        for worker in state.workers.values()
        if worker.role == "live" and worker.departure is None and worker.name not in apart
    ]
    members = {*(state.live.members if state.live else ()), *(state.attempt.target.members if state.attempt else ())}
    standbys = [worker for worker in state.workers.values() if worker.role == "standby"]
    return capacity.View(
        now=state.now,
        supply=state.supply,
        guaranteed=state.settings.live_workers if state.live is None else len(live),
        asked=max((goal.workers for goal in state.requests), default=0),
        pinned=state.pinned,
        busy=frozenset(worker.job_id for worker in standbys if worker.name in members),
        going=frozenset(worker.job_id for worker in standbys if worker.departure is not None or worker.dismissed),
        lives=state.lives,
        useless_since=state.useless_since,
    )


def _release(turn: Transition, job_id: str, reason: str) -> None:
    """Workers that are there leave by themselves; a job without any, or with some that never came, is ended."""
    turn.emit(events.StandbyRelease(job_id=job_id, reason=reason))
    for worker in list(turn.state.workers.values()):
        if worker.job_id == job_id and worker.role == "standby" and not worker.dismissed:
            reconfiguration.dismiss(turn, worker.name, "of no use any more")
    turn.actions.append(Release(job_id))
