"""submitit's Slurm executor for standby jobs. Imports submitit, so it is imported only where standbys are launched."""

from __future__ import annotations

import math
import os
import shlex
import sys
from pathlib import Path

from submitit.slurm.slurm import SlurmExecutor

from liver_slurm.config.schema import JobConfig
from liver_slurm.slurm.batch import gpu_request
from liver_slurm.slurm.command import job_variables
from liver_slurm.slurm.records import parse_duration

SUBMIT_TIMEOUT = 60
"""Seconds that sbatch has; submitit itself would wait for ever."""


class StandbyExecutor(SlurmExecutor):  # type: ignore[misc]
    """Submits from inside the coordinator's job as if from outside of it.

    The coordinator's own SLURM_* variables describe a job of one CPU; sbatch would take some of them for options, and
    the standby's srun others for its own.
    """

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        unset = [option for name in job_variables(os.environ) for option in ("-u", name)]
        return ["timeout", str(SUBMIT_TIMEOUT), "env", *unset, "sbatch", str(submission_file_path)]


def make_executor(config: JobConfig, folder: Path, job_name: str, comment: str, partition: str) -> StandbyExecutor:
    """An executor each of whose jobs is one standby unit in ``partition``."""
    standby = config.standby
    executor = StandbyExecutor(folder, max_num_timeout=0, python=_python(config))
    executor.update_parameters(
        job_name=job_name,
        comment=comment,
        partition=partition,
        time=max(1, math.ceil((parse_duration(standby.time) or 0) / 60)),
        nodes=standby.nodes_per_job,
        ntasks_per_node=standby.tasks_per_node,
        cpus_per_task=standby.cpus_per_task,
        gres=gpu_request(standby.gpus_per_task, standby.tasks_per_node),
        constraint=standby.constraint,
        exclude=standby.exclude,
        account=standby.account or config.live.account,
        qos=standby.qos,
        wckey=None,
        # Word of the time limit comes as early as the grace time that the policy counts on.
        signal_delay_s=max(1, math.ceil(standby.grace)),
        setup=[*config.live.setup, f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{standby.cpus_per_task}}}"'],
        # One worker that leaves or dies takes no other of its unit with it.
        srun_args=["--no-kill", "--kill-on-bad-exit=0", "--wait=0", f"--cpus-per-task={standby.cpus_per_task}"],
        additional_parameters=_additional(config),
    )
    return executor


def _additional(config: JobConfig) -> dict[str, str | bool]:
    """Header lines that submitit has no parameter for, or has one in other units than Slurm's."""
    standby = config.standby
    # A standby that was requeued would come back under its old id, with a state that nobody waits for.
    lines: dict[str, str | bool] = {"no-requeue": True, "no-kill": True, "time": standby.time, "export": "ALL"}
    if standby.mem is not None:
        lines["mem"] = standby.mem
    if standby.signal is not None:
        lines["signal"] = standby.signal
    return lines


def _python(config: JobConfig) -> str:
    return shlex.quote(config.live.python or sys.executable)
