"""A preemption through Slurm: a job of a higher tier on the standby's node, else the signal that one would send."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from liver_slurm.base.errors import ClusterError
from liver_slurm.chaos.agent import STRUCK, UNDONE
from liver_slurm.scheduler.slurm.client import SlurmClient
from liver_slurm.scheduler.slurm.records import JobInfo, PartitionInfo

JOB_NAME = "liver-chaos"
START = 30.0
"""Seconds in which the job must have preempted the standby; else it is taken back, and the standby is signalled."""
LOOK = 0.5
"""Seconds between looks at both jobs."""


def higher_tiers(partitions: Sequence[PartitionInfo], of: str, has_node: Callable[[PartitionInfo], bool]) -> list[str]:
    """Return partitions whose jobs may preempt those of partition ``of`` on a node, lowest tier first. Pure."""
    tier = next((one.priority_tier for one in partitions if one.name == of), math.inf)
    able = [one for one in partitions if one.is_up and one.priority_tier > tier and has_node(one)]
    return [one.name for one in sorted(able, key=lambda one: (one.priority_tier, one.name))]


class PreemptionHold:
    """:class:`liver_slurm.chaos.hold.Hold` of a job that has taken a standby's node for a while."""

    def __init__(self, client: SlurmClient, job_id: str, outcome: str, seconds: float) -> None:
        """``job_id``: the job that has the node; empty: there is none, the standby was only signalled."""
        self._client, self._job_id, self.outcome = client, job_id, outcome
        self._until = time.monotonic() + seconds

    def over(self) -> str | None:
        if not self._job_id:
            return "ended"
        if time.monotonic() < self._until:
            return None
        self.release()
        return UNDONE

    def release(self) -> None:
        """Give the node back now."""
        if self._job_id:
            self._client.cancel([self._job_id])

    def wait(self, deadline: float) -> str:
        """Do not wait: the job is on its way out once Slurm was told."""
        del deadline
        return UNDONE if self._job_id else "ended"


def preempt(client: SlurmClient, job: JobInfo, seconds: float) -> PreemptionHold:
    """Take a standby job's node for a while, or signal the job where no partition may.

    Raises:
        ClusterError: Slurm does not answer.
    """
    why = "no partition of a higher tier has the node"
    for name in higher_tiers(client.partitions(), job.partition, lambda one: _has(client, one, job)):
        try:
            other = _submit(client, name, job, seconds)
        except ClusterError as error:
            why = f"partition {name}: {error}"
            continue
        if _taken(client, job, other):
            return PreemptionHold(client, other, f"{STRUCK}: job {other} of partition {name} has its node", seconds)
        client.cancel([other])
        why = f"partition {name} did not preempt it within {START:g} s"
    client.signal(job.job_id, "TERM")
    return PreemptionHold(client, "", f"{STRUCK}: by signal, {why}", 0.0)


def _has(client: SlurmClient, partition: PartitionInfo, job: JobInfo) -> bool:
    return set(job.nodes) <= set(client.hostnames(partition.nodes))


def _submit(client: SlurmClient, partition: str, job: JobInfo, seconds: float) -> str:
    minutes = math.ceil((seconds + START) / 60) + 1  # it ends by then whatever becomes of us
    options = (
        f"--partition={partition}", f"--job-name={JOB_NAME}", f"--nodelist={','.join(job.nodes)}",
        f"--nodes={len(job.nodes)}", "--exclusive", f"--time={minutes}", "--no-requeue", "--chdir=/",
        "--output=/dev/null", "--error=/dev/null",
    )  # fmt: skip
    # In the header: what follows a script on sbatch's command line is the script's own.
    header = "".join(f"#SBATCH {option}\n" for option in options)
    with tempfile.TemporaryDirectory(prefix="liver-chaos-") as folder:
        script = Path(folder) / "hold.sh"
        script.write_text(f"#!/bin/bash\n{header}exec sleep {math.ceil(seconds + START)}\n")
        return client.submit(script)


def _taken(client: SlurmClient, job: JobInfo, other: str) -> bool:
    """Wait for Slurm to choose a job for preemption, or to end it, for the other's sake."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        jobs = {one.job_id: one for one in client.jobs([job.job_id, other])}
        standby = jobs.get(job.job_id)
        if standby is None or standby.ends or standby.preempt_time is not None:
            return True
        if other not in jobs or jobs[other].ends:
            return False
        time.sleep(LOOK)
    return False
