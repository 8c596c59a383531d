"""How a standby job is submitted. Imports submitit, so it is imported only where standbys are launched."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path

from liver_slurm.config.schema import JobConfig, StandbySection
from liver_slurm.plugins.submitit.executor import LiverExecutor
from liver_slurm.scheduler.slurm.batch import gpu_request
from liver_slurm.scheduler.slurm.notices import warning_seconds
from liver_slurm.scheduler.slurm.parsing import parse_duration


def make_executor(
    config: JobConfig, standby: StandbySection, folder: Path, job_name: str, comment: str, partition: str
) -> LiverExecutor:
    """An executor each of whose jobs is one unit of the size ``standby`` in ``partition``."""
    executor = LiverExecutor(folder, python=_python(config))
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
        signal_delay_s=int(warning_seconds(standby)),
        setup=[*config.live.setup, f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{standby.cpus_per_task}}}"'],
        # One worker that leaves or dies takes no other of its unit with it.
        srun_args=["--no-kill", "--kill-on-bad-exit=0", "--wait=0"],
        additional_parameters=_additional(standby),
    )
    return executor


def _additional(standby: StandbySection) -> dict[str, str | bool]:
    """Header lines that submitit has no parameter for, or has one in other units than Slurm's."""
    # No --no-kill: with it, workers on a node that is set DOWN are killed without a word; without it all of the job's
    # get SIGTERM and KillWait, in which the world goes on without them.
    lines: dict[str, str | bool] = {"time": standby.time, "export": "ALL"}
    if standby.mem is not None:
        lines["mem"] = standby.mem
    if standby.signal is not None:
        lines["signal"] = standby.signal
    return lines


def _python(config: JobConfig) -> str:
    return shlex.quote(config.live.python or sys.executable)
