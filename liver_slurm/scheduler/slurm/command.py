"""Running one of Slurm's own commands: always bounded in time, retried while slurmctld is away, one clear error."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from liver_slurm.base.errors import ClusterError

PACKAGES = "slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins"
INSTALL = f"apt-get install -y --no-install-recommends {PACKAGES}"
ATTEMPTS = 4
FIRST_DELAY = 0.25
"""Seconds before the second attempt; doubled for each one after it."""

# What Slurm prints when the controller is away for the moment. Texts differ by version, so these are fragments.
_PASSING = (
    "unable to contact slurm controller",
    "connect failure",
    "connection refused",
    "connection reset by peer",
    "socket timed out",
    "zero bytes were transmitted",
    "in standby mode",
    "resource temporarily unavailable",
)
# Set by Slurm inside a job. sbatch reads many of them as options, so a job that submits must not hand its own on.
_JOB_VARIABLES = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_MEM_BIND", "SBATCH_CPU_BIND", "SBATCH_GPUS_", "PMI_", "PMIX_")
_DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")

T = TypeVar("T")


def job_variables(environment: Mapping[str, str]) -> list[str]:
    """Names in ``environment`` that describe the job it belongs to; empty outside of a job."""
    if "SLURM_JOB_ID" not in environment:
        return []
    return sorted(
        name
        for name in environment
        if name != "SLURM_CONF" and (name.startswith(_JOB_VARIABLES) or name in _DEVICE_VARIABLES)
    )


def outside_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """``environment`` (default: ours) as it would be outside of the job that it belongs to."""
    source = os.environ if environment is None else environment
    inside = set(job_variables(source))
    return {name: value for name, value in source.items() if name not in inside}


def is_passing(stderr: str) -> bool:
    """Whether an error text says that slurmctld is away for the moment, so that asking again is worthwhile."""
    text = stderr.lower()
    return any(fragment in text for fragment in _PASSING)


def first_line(text: str) -> str:
    """The first line that says something, without the ``sbatch: error:`` in front of it."""
    for line in text.splitlines():
        words = line.split(": ", 2)
        message = words[2] if len(words) == 3 and words[1] in ("error", "fatal") else line
        if message.strip():
            return message.strip()
    return "no reason given"


def run_once(argv: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None, text: str = "") -> str:
    """Run one command, with ``text`` as its standard input, and return its standard output.

    Raises:
        ClusterError: it is not installed, took longer than ``timeout`` seconds, or failed.
    """
    name = os.path.basename(argv[0])
    conf = (os.environ if environment is None else environment).get("SLURM_CONF")
    if conf and not os.path.exists(conf):
        # Slurm's commands would wait a minute for the file to appear.
        raise ClusterError(f"SLURM_CONF names {conf}, which does not exist; name your cluster's slurm.conf")
    try:
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=None if environment is None else dict(environment),
            check=False,
        )
    except FileNotFoundError as error:
        raise NotInstalled(f"no {name} on this machine: {INSTALL}, or log in to the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise NotAnswering(f"{name} did not answer within {timeout:g} s: is slurmctld up?") from error
    if done.returncode == 0:
        return done.stdout
    message = f"{name}: {first_line(done.stderr)}"
    if "resolve_ctls_from_dns_srv" in done.stderr:
        message = f"{name} finds no cluster: there is no slurm.conf here; set SLURM_CONF, or log in to the cluster"
    raise NotAnswering(message) if is_passing(done.stderr) else ClusterError(message)


class NotInstalled(ClusterError):
    """There is no such command on this machine."""


class NotAnswering(ClusterError):
    """slurmctld is away; the same question may be answered a little later."""


def retried(
    attempt: Callable[[], T],
    attempts: int = ATTEMPTS,
    delay: float = FIRST_DELAY,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """``attempt()``, again after a growing delay each time that slurmctld does not answer; the last error is raised."""
    for _ in range(attempts - 1):
        try:
            return attempt()
        except NotAnswering:  # noqa: PERF203 - trying again is what the loop is for
            sleep(delay)
            delay *= 2
    return attempt()
