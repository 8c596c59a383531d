"""Status: the document for clients, and what events and records say of decisions and reconfigurations."""

from __future__ import annotations

import re
from typing import Any

from msgspec import UNSET, UnsetType

from liver_slurm.config.schema import JobConfig
from liver_slurm.coordinator.core.state import RunPhase, RunState
from liver_slurm.coordinator.core.workers import Worker
from liver_slurm.coordinator.core.worlds import Attempt
from liver_slurm.observability.status import (
    QueryStatus,
    RequestStatus,
    RunStatus,
    StandbyJobStatus,
    TargetStatus,
    WorkerStatus,
)
from liver_slurm.policy import api
from liver_slurm.policy.types import ResizeGoal
from liver_slurm.protocol.messages import TransferReport
from liver_slurm.rundir.events import CommitStats, PolicyDecided, ReconfigurationCommitted, Route, to_document
from liver_slurm.scheduler.ports import StandbyJob

_FIGURE = re.compile(r"\d[\d.]*")


def document(state: RunState) -> dict[str, Any]:
    """Return what the run is doing, ready for JSON."""
    live, pending, pool = state.world.live, state.world.pending, state.standbys
    target = pending.target if pending is not None else None
    members = frozenset(state.world.members) - frozenset(
        state.damage.lost
    )  # another process may have a lost one's name
    workers = state.membership.workers
    status = RunStatus(
        run_id=state.settings.run_id,
        state=_state(state),
        phase=state.phase.value,
        epoch=state.settings.epoch,
        step=state.step,
        steps=state.settings.config.train.steps,
        generation=state.generation,
        layout=str(live.layout) if live else None,
        target=TargetStatus(generation=target.generation, layout=str(target.layout)) if target else None,
        workers=[
            _worker(workers[member], rank=rank)
            for rank, member in enumerate(state.world.members)
            if member in workers and member in members
        ],
        standbys=[_worker(worker, warm=worker.warm) for worker in workers.values() if worker.name not in members],
        standby_jobs=[_job(job) for job in pool.jobs],
        successor=state.handover.successor or None,
        scheduler=pool.capacity.blind if pool.capacity else None,
        queries=QueryStatus(
            last_minute=pool.capacity.queries if pool.capacity else None,
            per_minute=state.settings.config.standby.queries_per_minute,
        ),
        requests=[] if state.over else [_request(goal) for goal in state.resizes.goals],
        last_reconfiguration=_stats(state.world.last),
        reason=state.reason,
        validating=state.validating or UNSET,
        checkpoint_error=state.barriers.save_error or UNSET,
        files=dict(state.files) or UNSET,
        rejected={**state.rejected, "by_workers": sum(worker.rejected for worker in workers.values())},
    )
    return status.document()


def _state(state: RunState) -> str:
    """Return the run's state in one word: "training" whatever is prepared beside it."""
    training = state.world.live is not None and state.lifecycle.phase in (RunPhase.STARTING, RunPhase.TRAINING)
    return "training" if training else state.lifecycle.phase.value


def _stats(last: ReconfigurationCommitted | None) -> dict[str, Any] | None:
    if last is None:
        return None
    fields = to_document(last)
    del fields["event"]
    return {"generation": fields.pop("generation"), **fields}


def _job(job: StandbyJob) -> StandbyJobStatus:
    notice = job.notice.kind if job.notice else None
    nodes = list(job.nodes)
    return StandbyJobStatus(job_id=job.job_id, state=job.state, nodes=nodes, notice=notice, partition=job.partition)


def _request(goal: ResizeGoal) -> RequestStatus:
    layout = str(goal.layout or "")
    return RequestStatus(request=goal.number, layout=layout, workers=goal.workers, at_step=goal.at_step)


def _worker(worker: Worker, *, rank: int | UnsetType = UNSET, warm: bool | UnsetType = UNSET) -> WorkerStatus:
    return WorkerStatus(
        rank=rank,
        warm=warm,
        worker=worker.name,
        role=worker.role,
        host=worker.host,
        pid=worker.pid,
        began=worker.began or UNSET,
        job_id=worker.job_id,
        device=worker.device,
        generation=worker.generation,
        step=worker.step,
        notice=worker.eviction.reason if worker.eviction else None,
        mirror=UNSET if worker.mirror == "none" else worker.mirror,
        mirror_way=worker.mirror_way or UNSET,
        mirror_bytes=worker.mirror_bytes if worker.mirror_way else UNSET,
        mirror_proofs=worker.mirror_proofs if any(worker.mirror_proofs) else UNSET,
    )


# ---- a decision ----------------------------------------------------------------------------------------------------


def decided(seen: api.Snapshot, decision: api.Decision, reason: str, config: JobConfig) -> PolicyDecided:
    """Return what was decided about the next world, and from what."""
    change = decision if isinstance(decision, api.Change) else None
    return PolicyDecided(
        policy=config.standby.policy,
        decision=type(decision).__name__.lower(),
        to=str(change.layout) if change else None,
        chosen=len(change.members) if change else 0,
        until=decision.until if isinstance(decision, api.Wait | api.Leave) else None,
        reason=reason,
        layout=str(seen.live.layout),
        available=len(seen.pool),
        ready=len(seen.ready),
        leaving=len(seen.leaving),
        step_seconds=seen.step_seconds,
        steps_left=seen.steps_left,
        automatic=seen.automatic,
        request=seen.due.number if seen.due is not None else None,
    )


def is_news(decision: PolicyDecided, last: PolicyDecided | None) -> bool:
    """Return whether the event log is to have a decision, after the last one that it has.

    A reconfiguration is always news. So is a decision about other workers, though it be the same one. Where a policy
    waits, its reason often has a figure that is another at each look; that alone is none.
    """
    if last is None or decision.to is not None:
        return True
    before, after = (
        (one.decision, one.request, one.layout, one.available, one.leaving, _FIGURE.sub("", one.reason))
        for one in (last, decision)
    )
    return before != after


# ---- a reconfiguration ---------------------------------------------------------------------------------------------


def route(attempt: Attempt) -> Route:
    """Say which workers go from which layout to which."""
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


def _mode(state: RunState, attempt: Attempt) -> str:
    """Return the mode that was used: overlap whose state had to wait for the pause was a pause, or flat."""
    if any(vote.report.image_bytes for vote in attempt.streamed.values()):
        return "flat"
    schedule = attempt.schedule
    paused = schedule is not None and schedule.steps == 0 and schedule.wire_s > 0
    return "pause" if paused or attempt.rescue is not None else state.settings.config.stream.mode


def summary(state: RunState, attempt: Attempt, step: int) -> CommitStats:
    """Return what the commit record says, once all have voted for the commit at ``step``."""
    votes = [vote.report for vote in attempt.streamed.values()]
    remote, local = sum(vote.bytes_received for vote in votes), sum(vote.bytes_local for vote in votes)
    source = attempt.source
    heard = [attempt.streamed[member] for member in source.members if member in attempt.streamed] if source else []
    votes, old_votes = votes or [TransferReport()], [vote.report for vote in heard]
    # A world that never trained a step stood still from its own beginning, where the pause before it ended.
    trained = source is None or source.step < step
    return CommitStats(
        **route(attempt),
        reason=attempt.reason,
        mode=_mode(state, attempt),
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
        image_bytes=sum(vote.image_bytes for vote in votes),
        digests_checked=sum(vote.digests_checked for vote in votes),
        paused_at=max((vote.paused_at for vote in old_votes), default=state.damage.since)
        if trained
        else attempt.started,
        gap_s=max((vote.gap_seconds for vote in old_votes), default=0.0),
    )
