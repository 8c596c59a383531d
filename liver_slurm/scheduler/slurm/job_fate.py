"""What Slurm is doing with a job whose processes were told to end. The judgement is pure."""

from __future__ import annotations

from collections.abc import Sequence

from liver_slurm.scheduler.ports import Fate
from liver_slurm.scheduler.slurm.client import SlurmClient
from liver_slurm.scheduler.slurm.records import JobInfo


def job_fate(client: SlurmClient, job_id: str, restarts: int) -> tuple[Fate, str]:
    """Ask Slurm; see :func:`judge`.

    Raises:
        ClusterError: Slurm does not answer.
    """
    return judge(client.jobs([job_id]), job_id, restarts)


def judge(jobs: Sequence[JobInfo], job_id: str, restarts: int) -> tuple[Fate, str]:
    """Return what becomes of job ``job_id``, which Slurm had started again ``restarts`` times when the asker began; and
    why.

    A requeue counts as a restart at once, before the steps have ended (measured: 22.05), so their signal never comes
    before its reason can be seen.
    """
    # A task of a job array has a number of its own, and knows itself by that.
    jobs = [job for job in jobs if job_id in (job.leader, str(job.number))]
    leader = next((job for job in jobs if job.component == 0), None)
    if leader is None:
        return "over", f"job {job_id} is unknown to Slurm"
    if not leader.is_over and leader.restarts > restarts:
        return "requeued", f"job {job_id} was requeued"
    if not leader.ends:  # RUNNING, or SUSPENDED, or for a moment SIGNALING
        taken = next((job for job in jobs if job.preempt_time is not None), None)
        if taken is not None:
            return "preempted", f"job {job_id} is being preempted"
        return "running", f"job {job_id} runs"
    return "over", f"job {job_id} is {leader.state}"
