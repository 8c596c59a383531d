"""Running one of Slurm's own commands: always bounded in time, retried while slurmctld is away, one clear error."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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
# Options of Slurm's commands that the environment can give, or that Slurm sets inside a job. A login shell, a site's
# module or the job that we are in may have any of them; the job file is what counts.
_OPTION_VARIABLES = (
    *("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SALLOC_", "SQUEUE_", "SINFO_", "SCANCEL_", "SCONTROL_"),
    *("PMI_", "PMIX_"),
)
_WHERE_SLURM_IS = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_SOCKET", "SLURM_SACK_KEY"})
HEADER_OF = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_WCKEY": "wckey",
}
"""Variables that stay where the submission does not say itself what they say, and the option that would."""
_DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")

T = TypeVar("T")


def option_variables(environment: Mapping[str, str], said: Collection[str] = tuple(HEADER_OF.values())) -> list[str]:
    """Return the names in ``environment`` that Slurm's commands would take for options, or that describe the job that
    we are in.

    Args:
        environment: to look at.
        said: options that the submission gives itself; of :data:`HEADER_OF`, those of all others stay.
    """
    devices = _DEVICE_VARIABLES if "SLURM_JOB_ID" in environment else ()
    stay = {name for name, option in HEADER_OF.items() if option not in said} | _WHERE_SLURM_IS
    return sorted(
        name for name in environment if name in devices or (name.startswith(_OPTION_VARIABLES) and name not in stay)
    )


def outside_environment(environment: Mapping[str, str] | None = None, said: Collection[str] = ()) -> dict[str, str]:
    """Return ``environment`` (default: ours) without what Slurm's commands would take for options.

    ``said``: as for :func:`option_variables`.
    """
    source = os.environ if environment is None else environment
    dropped = set(option_variables(source, said))
    return {name: value for name, value in source.items() if name not in dropped}


def is_passing(stderr: str) -> bool:
    """Return whether an error text says that slurmctld is away for the moment, so that asking again is worthwhile."""
    text = stderr.lower()
    return any(fragment in text for fragment in _PASSING)


def first_line(text: str) -> str:
    """Return the first line that says something, without the ``sbatch: error:`` in front of it."""
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
    """Call ``attempt()``, again after a growing delay each time that slurmctld does not answer.

    The last error is raised.
    """
    for _ in range(attempts - 1):
        try:
            return attempt()
        except NotAnswering:  # noqa: PERF203 - trying again is what the loop is for
            sleep(delay)
            delay *= 2
    return attempt()
