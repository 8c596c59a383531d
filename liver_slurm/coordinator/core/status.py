"""The status document that clients get."""

from __future__ import annotations

from typing import Any

from liver_slurm.coordinator.core.state import Phase, RunState, Worker
from liver_slurm.rundir.events import ReconfigurationCommitted, to_document

_TRAINING = (Phase.STEADY, Phase.PREPARE, Phase.STREAM, Phase.CUTOVER, Phase.RETIRE)


def document(state: RunState) -> dict[str, Any]:
    """What the run is doing, ready for JSON."""
    live, attempt = state.live, state.attempt
    ranks = {member: rank for rank, member in enumerate(live.members)} if live else {}
    standbys = [worker for worker in state.workers.values() if worker.name not in ranks]
    target = attempt.target if attempt is not None and not attempt.committed else None
    jobs = state.supply.jobs if state.supply else ()
    return {
        "run_id": state.settings.run_id,
        "state": _state(state),
        "phase": state.phase.value,
        "epoch": state.settings.epoch,
        "step": state.step,
        "steps": state.settings.config.train.steps,
        "generation": state.generation,
        "layout": str(live.layout) if live else None,
        "target": {"generation": target.generation, "layout": str(target.layout)} if target else None,
        "workers": [
            {"rank": rank, **_worker(state.workers[member])}
            for member, rank in ranks.items()
            if member in state.workers
        ],
        "standbys": [{"warm": worker.warm, **_worker(worker)} for worker in standbys],
        "standby_jobs": [
            {
                "job_id": job.job_id,
                "state": job.state,
                "nodes": list(job.nodes),
                "notice": job.notice.kind if job.notice else None,
            }
            for job in jobs
        ],
        "successor": state.live_job.successor.job_id if state.live_job and state.live_job.successor else None,
        "scheduler": state.supply.blind if state.supply else None,
        "queries": {
            "last_minute": state.supply.queries if state.supply else None,
            "per_minute": state.settings.config.standby.queries_per_minute,
        },
        "requests": [
            {"request": goal.number, "layout": str(goal.layout or ""), "workers": goal.workers, "at_step": goal.at_step}
            for goal in state.requests
        ],
        "last_reconfiguration": _stats(state.last_reconfiguration),
        "reason": state.reason,
        "rejected": {**state.rejected, "by_workers": sum(worker.rejected for worker in state.workers.values())},
    }


def _worker(worker: Worker) -> dict[str, Any]:
    return {
        "worker": worker.name,
        "role": worker.role,
        "host": worker.host,
        "pid": worker.pid,
        "job_id": worker.job_id,
        "device": worker.device,
        "generation": worker.generation,
        "step": worker.step,
        "notice": worker.departure.reason if worker.departure else None,
    }


def _stats(last: ReconfigurationCommitted | None) -> dict[str, Any] | None:
    if last is None:
        return None
    fields = to_document(last)
    del fields["event"]
    return {"generation": fields.pop("generation"), **fields}


def _state(state: RunState) -> str:
    if state.phase not in _TRAINING:
        return state.phase.value
    return "training" if state.live else "starting"
