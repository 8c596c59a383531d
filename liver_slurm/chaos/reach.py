"""How a process of the run is reached: on this host directly, on others by a step within the run's own job."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

from liver_slurm.base.errors import LiverError
from liver_slurm.base.faults import Fault
from liver_slurm.chaos.hold import AgentHold, Hold
from liver_slurm.chaos.preemption import preempt
from liver_slurm.chaos.schedule import Strike, Target
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.client import SlurmClient
from liver_slurm.scheduler.slurm.command import outside_environment
from liver_slurm.scheduler.slurm.ownership import jobs_of_run
from liver_slurm.scheduler.slurm.records import JobInfo


class Reach:
    """Strikes at the processes of one run.

    Args of the constructor: ``client`` is None for a run of plain processes, which are all on this host.
    """

    def __init__(self, run_dir: RunDir, name: str, job_id: str, client: SlurmClient | None, host: str = "") -> None:
        self._run_dir, self._name, self._job_id, self._client = run_dir, name, job_id, client
        self._here = {host} if host else {socket.gethostname(), "127.0.0.1", "localhost"}

    def strike(self, strike: Strike) -> Hold:
        """Do a fault.

        Raises:
            LiverError: the process cannot be reached, or Slurm does not answer.
        """
        if strike.fault is Fault.PREEMPT and self._client is not None:
            job = _job_on(self._jobs(), strike.target)
            return preempt(self._client, job, strike.seconds)
        return AgentHold(self.command(strike), outside_environment())

    def command(self, strike: Strike) -> list[str]:
        """Return the command line of the agent that does a fault.

        Raises:
            LiverError: the process is on another host, and there is no job of the run on it.
        """
        agent = [sys.executable, "-m", "liver_slurm.chaos.agent", *agent_arguments(strike)]
        target = strike.target
        if target.host in self._here:
            return [*agent, "--detach"]
        if self._client is None:
            raise LiverError(f"{target.name} is on {target.host}; plain processes are reached only where they run")
        return [*step_arguments(_job_on(self._jobs(), target), target), *agent]

    def _jobs(self) -> list[JobInfo]:
        assert self._client is not None
        return jobs_of_run(self._client, self._run_dir, self._name, self._job_id)


def agent_arguments(strike: Strike) -> list[str]:
    """Return the agent's own arguments."""
    target = strike.target
    proof = ["--began", str(target.began)] if target.began is not None else ["--port", str(target.port)]
    return [strike.fault.value, str(target.pid), *proof, "--seconds", str(strike.seconds)]


def step_arguments(job: JobInfo, target: Target) -> list[str]:
    """Return the srun command that runs one task beside a target, in its own job, whatever that job's resources are."""
    component = [f"--het-group={job.component}"] if "+" in job.job_id else []
    node = job.nodes[0] if len(job.nodes) == 1 else target.host
    return [
        "srun", f"--jobid={job.leader}", *component, "--overlap", f"--nodelist={node}", "--nodes=1", "--ntasks=1",
        "--quiet", "--unbuffered", "--chdir=/",
    ]  # fmt: skip


def _job_on(jobs: Sequence[JobInfo], target: Target) -> JobInfo:
    """Return the run's job, or the component of it, that has a target's host.

    Where Slurm has other names for nodes than they have for themselves, it is the component of the target's kind, if
    that has one node; on a wrong node the agent finds that the process is not the one, and strikes nobody.

    Raises:
        LiverError: there is none.
    """
    running = [job for job in jobs if not job.ends and target.job_id in (job.leader, job.job_id, str(job.number))]
    for job in running:
        if target.host in job.nodes:
            return job
    of_kind = [
        job for job in running if "+" not in job.job_id or (job.component == 0) == (target.role == "coordinator")
    ]
    if of_kind and len(of_kind[0].nodes) == 1:
        return of_kind[0]
    raise LiverError(f"{target.name} is on {target.host}, and no running job {target.job_id} of the run is there")


def is_own(run_dir: RunDir) -> bool:
    """Return whether a run directory, and so the run, is this user's."""
    return run_dir.path.stat().st_uid == os.getuid()
