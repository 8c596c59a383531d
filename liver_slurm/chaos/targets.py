"""Whom a fault can be done to: the processes of a run, as its coordinator's status document has them. Pure."""

from __future__ import annotations

from msgspec import UNSET

from liver_slurm.chaos.schedule import Target
from liver_slurm.observability.status import RunStatus, WorkerStatus
from liver_slurm.rundir.address import Address


def targets_of(status: RunStatus, address: Address, job_id: str = "") -> tuple[list[Target], str]:
    """Return the processes that can be proven, and why others are left out; empty: none is.

    Args:
        status: what the coordinator has just said.
        address: where it listens; of another epoch than the status, it is another coordinator's and proves nothing.
        job_id: the run's guaranteed job, which its coordinator runs in; empty: there is none.
    """
    found: list[Target] = []
    unproven: list[str] = []
    members = {one.worker for one in status.workers}
    for one in [*status.workers, *status.standbys]:
        target = _worker(one, one.worker in members)
        if target is None:
            unproven.append(one.worker)
        else:
            found.append(target)
    if status.epoch == address.epoch:
        where = {"host": address.host, "pid": address.pid, "port": address.port}
        found.append(Target("coordinator", "coordinator", began=None, job_id=job_id, **where))  # type: ignore[arg-type]
    else:
        unproven.append("coordinator")
    return found, f"not proven to be the run's: {', '.join(unproven)}" if unproven else ""


def _worker(one: WorkerStatus, in_world: bool) -> Target | None:
    """Return a worker as a target; None: the coordinator does not say enough of it."""
    if one.pid is UNSET or one.began is UNSET or not one.began or not isinstance(one.host, str):
        return None
    return Target(
        name=one.worker,
        role="live" if in_world else "standby",
        host=one.host,
        pid=one.pid,
        began=one.began,
        job_id=one.job_id if isinstance(one.job_id, str) else "",
        reclaimable=one.role == "standby",
    )
