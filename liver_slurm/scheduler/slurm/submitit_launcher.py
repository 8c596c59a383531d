"""``python -m liver_slurm.scheduler.slurm.submitit_launcher``: submit standby jobs through submitit's public surface.

The one module that imports submitit, and a process of its own: what submitit's public surface cannot carry are an
environment and a time limit for ``sbatch``. It hands on the environment of the process that calls it, and waits for
ever. The coordinator lives inside a Slurm job, whose variables ``sbatch`` and the new job's ``srun`` would take for
options of theirs (submitit's own ``helpers.clean_env`` also removes ``SLURM_CONF``, and changes the environment of
all threads). So the environment and the limit are those of this process, see :func:`launch`; everything else that a
standby needs goes through ``SlurmExecutor.update_parameters``. The command of the batch script is submitit's, so what
a site's job_submit filter knows standbys by is a line of ``setup``. submitit's 0.5 s of imports stay out of the
coordinator, too.

The job id that submitit reads out of ``sbatch``'s output says which jobs are ours, see
:class:`liver_slurm.scheduler.slurm.standby.SlurmStandbys`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from liver_slurm.scheduler.ports import LaunchStopped
from liver_slurm.scheduler.slurm.command import first_line, outside_environment, run_once

TIMEOUT = 60.0
"""Seconds that one submission may take."""


class LaunchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Standby jobs of one kind, as the launching process reads them from its standard input, JSON."""

    count: int
    folder: str
    """Where submitit keeps its scripts, pickles and outputs."""
    python: str
    """Command that starts Python on the nodes, as a shell reads it."""
    parameters: dict[str, Any]
    """Of ``submitit.SlurmExecutor.update_parameters``."""
    task: str
    """``module:function`` that each task calls; it must be importable on the nodes."""
    argument: str
    """What the function is called with."""


class LaunchReply(msgspec.Struct, frozen=True):
    """What the launching process prints, JSON."""

    job_ids: tuple[str, ...]
    error: str = ""
    """Why no further job was submitted; empty: all were."""


def task_path(function: Callable[[str], Any]) -> str:
    """Return ``module:function`` of an importable function."""
    return f"{function.__module__}:{function.__qualname__}"


def launch(request: LaunchRequest) -> list[str]:
    """Submit standby jobs in a process of its own; returns their ids.

    Raises:
        LaunchStopped: Slurm refused one; those that were submitted before it stay.
        ClusterError: it did not answer in time.
    """
    command = [sys.executable, "-m", __name__]
    limit = TIMEOUT * request.count
    said = [name for name, value in request.parameters.items() if value is not None]
    output = run_once(command, limit, outside_environment(said=said), msgspec.json.encode(request).decode())
    reply = msgspec.json.decode(output.splitlines()[-1], type=LaunchReply)
    if reply.error:
        raise LaunchStopped(reply.job_ids, f"a standby job was refused: {reply.error}")
    return list(reply.job_ids)


def submit_all(request: LaunchRequest) -> LaunchReply:
    """Submit the jobs from this process, in its environment."""
    import submitit

    module, _, name = request.task.partition(":")
    # Pickled by reference, so that nodes may have another Python than we do.
    function = getattr(importlib.import_module(module), name)
    job_ids: list[str] = []
    try:
        executor = submitit.SlurmExecutor(request.folder, max_num_timeout=0, python=request.python)
        executor.update_parameters(**request.parameters)
        for _ in range(request.count):
            job_ids.append(str(executor.submit(function, request.argument).job_id))  # noqa: PERF401 - kept if the next is refused
    except RuntimeError as error:  # submitit's word for all that Slurm refuses
        return LaunchReply(tuple(job_ids), first_line(str(error)))
    return LaunchReply(tuple(job_ids))


if __name__ == "__main__":
    answer = submit_all(msgspec.json.decode(sys.stdin.buffer.read(), type=LaunchRequest))
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
