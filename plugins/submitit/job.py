"""A submitted job as its owner sees it; states come from one query of our own client for all jobs."""

from __future__ import annotations

import time
from collections.abc import Iterable

from submitit.core import core, logger
from submitit.slurm.slurm import SlurmJob, read_job_id

from liver_slurm.base.errors import ClusterError
from liver_slurm.scheduler.slurm.connect import connect
from liver_slurm.scheduler.slurm.records import JobInfo

POLL = 15
"""Seconds between two queries at most while jobs are waited for; at first 2, as submitit has it."""
PURGED = "PURGED"
"""State of a job that Slurm has forgotten (MinJobAge after its end): it is over, and its result says how."""


class LiverInfoWatcher(core.InfoWatcher):  # type: ignore[misc]
    """What is known of all jobs of this process. Needs no accounting."""

    def update(self) -> None:
        """Ask once for all jobs that are not over. If Slurm does not answer, what was known stays."""
        waiting = self._registered - self._finished
        if not waiting:
            return
        self._num_calls += 1
        self._last_status_check = time.time()
        try:
            # A client each time: it takes the environment, and so the cluster, as it is now.
            infos = connect().jobs(sorted({job_id.partition("_")[0] for job_id in waiting}))
        except ClusterError as error:
            logger.get_logger().warning("the states of jobs are as of before: %s", error)
            return
        for job_id in waiting:
            info = find_job(infos, job_id)
            nodes = info.nodes if info is not None else ()
            state = info.state if info is not None else PURGED
            self._info_dict[job_id] = {"JobID": job_id, "State": state, "NodeList": ",".join(nodes)}
            if info is None or info.is_over:
                self._finished.add(job_id)

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """Return Slurm's long state, :data:`PURGED`, or UNKNOWN before the first answer."""
        return str(self.get_info(job_id, mode=mode).get("State", "UNKNOWN"))

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Return whether it is over. A preempted job is: it is not requeued."""
        self.get_info(job_id, mode=mode)
        return job_id in self._finished


class LiverJob(SlurmJob[core.R]):  # type: ignore[misc]
    """submitit's job; see :class:`submitit.Job`."""

    watcher = LiverInfoWatcher(delay_s=POLL)

    def cancel(self, check: bool = True) -> None:
        """End the job; one that is over already is no error.

        Raises:
            ClusterError: Slurm refused or did not answer, and ``check`` is set.
        """
        try:
            connect().cancel([self.job_id])
        except ClusterError as error:
            if check:
                raise
            logger.get_logger().warning("job %s may run on: %s", self.job_id, error)


def find_job(infos: Iterable[JobInfo], job_id: str) -> JobInfo | None:
    """Return the record of a job, or of one task of a job array, ``12_3``; for an array's own id that of a task not yet
    over.

    Tasks that have not started share one record, ``12_[3,5-9%4]``.
    """
    array, _, task = job_id.partition("_")
    related = [info for info in infos if info.job_id.partition("_")[0] == array]
    own = [info for info in related if info.job_id == job_id]
    if own or not related:
        return own[0] if own else None
    if not task:
        return min(related, key=lambda info: info.is_over)
    return next((info for info in related if "[" in info.job_id and _covers(info.job_id, int(task))), None)


def _covers(shared: str, task: int) -> bool:
    try:
        ranges = [tuple(map(int, numbers)) for _, *numbers in read_job_id(shared)]
    except ValueError:
        return True  # Slurm cuts long lists short; a task with no record of its own is then taken for one of them
    return any(numbers[0] <= task <= numbers[-1] for numbers in ranges)
