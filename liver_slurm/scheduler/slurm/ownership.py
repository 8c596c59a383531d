"""Which of a user's Slurm jobs belong to a run, and ending all of them.

Every job that a run starts carries the run directory as its comment: the guaranteed job and its successors under the
run's name, standby jobs under a name of their own. Two runs of one name differ in the comment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.client import SlurmClient
from liver_slurm.scheduler.slurm.records import JobInfo
from liver_slurm.scheduler.slurm.standby import carries_mark, standby_job_name

LOOK = 0.5
"""Seconds between looks at jobs that are ending."""


def jobs_of_run(client: SlurmClient, run_dir: RunDir, name: str, job_id: str = "") -> list[JobInfo]:
    """Return the run's jobs, all components of each, ended ones while Slurm still knows them.

    ``name``: the run's, which its guaranteed jobs have. ``job_id``: one that is known to be the run's, whatever its
    name and comment are: people change scripts.

    Raises:
        ClusterError: Slurm does not answer.
    """
    marked = [job for job in client.jobs(names=(name, standby_job_name(run_dir))) if carries_mark(job, run_dir)]
    known = client.jobs([job_id]) if job_id and all(job.leader != job_id for job in marked) else []
    return marked + known


def end_jobs_of_run(
    client: SlurmClient,
    run_dir: RunDir,
    name: str,
    job_id: str = "",
    patience: float = 90.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[list[str], list[str]]:
    """End every job of the run, see :func:`jobs_of_run`, also those that are submitted meanwhile.

    A coordinator may be submitting one this very moment, and can until its own job is over. So it is looked again until
    no job of the run is left.

    Returns:
        ids of the jobs that were ended, and of those that Slurm is still ending after ``patience`` seconds.

    Raises:
        ClusterError: Slurm does not answer.
    """
    told: dict[str, None] = {}
    deadline = clock() + patience
    while True:
        left = [job for job in jobs_of_run(client, run_dir, name, job_id) if not job.is_over]
        fresh = _leaders(job for job in left if not job.ends and job.leader not in told)
        if fresh:
            client.cancel(fresh)
            told.update(dict.fromkeys(fresh))
        elif not left or clock() >= deadline:
            return list(told), _leaders(left)
        else:
            sleep(LOOK)


def _leaders(jobs: Iterable[JobInfo]) -> list[str]:
    return list(dict.fromkeys(job.leader for job in jobs))
