"""The guaranteed job's time limit, and the successor job that goes on with the run after it."""

from __future__ import annotations

import os
from collections.abc import Collection

from liver_slurm.base.errors import ClusterError
from liver_slurm.config.schema import JobConfig
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.ports import GuaranteedJob, SuccessorJob
from liver_slurm.scheduler.slurm.client import CommandClient, SlurmClient
from liver_slurm.scheduler.slurm.records import JobInfo
from liver_slurm.scheduler.slurm.standby import carries_mark

SUCCEEDS = "LIVER_SUCCEEDS"
"""Variable that tells the batch script which job it takes over from."""
_NOT_OURS_TO_GIVE = ("LIVER_STARTED",)
"""Variables of the coordinator's own step."""


class SlurmGuaranteedJob:
    """:class:`liver_slurm.scheduler.ports.GuaranteedJobSource` on Slurm.

    The guaranteed job and its successor carry the run's name and, as comment, its run directory. So a coordinator that
    was started again finds what the one before it submitted, and one query shows both.
    """

    def __init__(
        self, config: JobConfig, run_dir: RunDir, client: SlurmClient, job_id: str, earlier: Collection[str]
    ) -> None:
        """``job_id``: the guaranteed job; ``earlier``: those before it, which may not have ended yet."""
        self._config, self._run_dir, self._client = config, run_dir, client
        self._job_id, self._earlier = job_id, frozenset(earlier)
        self._by_hand = False

    def observe(self) -> GuaranteedJob:
        jobs = self._own_jobs()
        live = next((job for job in jobs if job.leader == self._job_id), None)
        self._by_hand = live is None
        live = live or next(iter(self._client.jobs([self._job_id])), None)
        if live is None:
            raise ClusterError(f"Slurm does not know the guaranteed job {self._job_id}")
        following = self._following(jobs)
        return GuaranteedJob(live.end_time, live.time_limit, following[0] if following else None)

    def submit(self) -> str:
        if self._by_hand:
            raise ClusterError(f"job {self._job_id} was made by hand: nothing says how to submit it again")
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_OURS_TO_GIVE}
        client = CommandClient({**environment, SUCCEEDS: self._job_id})
        return client.submit(self._run_dir.batch_script)

    def close(self) -> None:
        self._client.cancel([job.job_id for job in self._following(self._own_jobs())])

    def _own_jobs(self) -> list[JobInfo]:
        jobs = self._client.jobs(names=(self._config.job.name,))
        return [job for job in jobs if carries_mark(job, self._run_dir) and job.component == 0]

    def _following(self, jobs: list[JobInfo]) -> list[SuccessorJob]:
        known = self._earlier | {self._job_id}
        found = [job for job in jobs if job.leader not in known and not job.ends]
        found.sort(key=lambda job: int(job.leader))
        return [SuccessorJob(job.leader, job.state, job.reason) for job in found]


def has_ended(client: SlurmClient, job_id: str) -> bool:
    """Return whether none of the job's processes can act any more, as far as Slurm knows.

    Raises:
        ClusterError: Slurm does not answer.
    """
    return all(job.is_over for job in client.jobs([job_id]) if job.leader == job_id)
