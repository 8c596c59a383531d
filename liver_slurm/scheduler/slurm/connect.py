"""Which back end of the Slurm client is used: pyslurm where it fits the cluster, else Slurm's own commands."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from liver_slurm.base.errors import BadInput, ClusterError
from liver_slurm.base.query_budget import QueryBudget
from liver_slurm.scheduler.slurm.client import CommandClient, SlurmClient

CHOICE = "LIVER_SLURM_CLIENT"
"""Environment variable that forces a back end: ``commands`` or ``pyslurm``."""


def connect(timeout: float = 30.0, budget: QueryBudget | None = None, may_wait: bool = True) -> SlurmClient:
    """Return a client of the cluster that our environment names.

    Args:
        timeout: seconds that one of Slurm's commands may take.
        budget: counts what is asked.
        may_wait: whether this process may stand still until slurmctld answers. pyslurm holds the interpreter for that
            long, so where other threads have work to do it is taken only if :data:`CHOICE` says so.

    Raises:
        BadInput: :data:`CHOICE` names no back end, or one that cannot be used here.
        ClusterError: pyslurm is forced, and Slurm does not answer.
    """
    forced = os.environ.get(CHOICE, "")
    if forced not in ("", "commands", "pyslurm"):
        raise BadInput(f"{CHOICE}={forced} names no Slurm client: say commands or pyslurm, or unset it")
    commands = CommandClient(timeout=timeout, budget=budget)
    if forced == "commands" or (not forced and not may_wait):
        return commands
    library = _pyslurm_version()
    if library is None and not forced:
        return commands
    try:
        cluster = _cluster_version(commands.config())
    except ClusterError:
        # Loading pyslurm where there is no cluster ends the process, so it is not even tried.
        if forced:
            raise
        return commands
    fits, reason = pyslurm_fits(library, cluster)
    if fits:
        from liver_slurm.scheduler.slurm.pyslurm_client import PyslurmClient

        return PyslurmClient(commands, os.environ.get("SLURM_CONF"), budget)
    if forced:
        raise BadInput(f"{CHOICE}=pyslurm cannot be: {reason}; or say {CHOICE}=commands")
    return commands


def pyslurm_fits(library: str | None, cluster: str) -> tuple[bool, str]:
    """Return whether pyslurm's version ``library`` (None: not installed) can talk to a Slurm of version ``cluster``,
    and why.

    pyslurm is built against one release of Slurm, which its first two numbers name.
    """
    if library is None:
        return False, "pyslurm is not installed: pip install 'liver-slurm[pyslurm]'"
    release = ".".join(str(int(part)) for part in re.findall(r"\d+", cluster)[:2])
    if ".".join(str(int(part)) for part in re.findall(r"\d+", library)[:2]) != release:
        return False, f"pyslurm {library} is not for Slurm {cluster}: pip install 'pyslurm=={release}.*'"
    return True, f"pyslurm {library} is for Slurm {release}"


def _cluster_version(config: Mapping[str, str]) -> str:
    return config.get("SLURM_VERSION", "of unknown version")


def _pyslurm_version() -> str | None:
    try:
        return version("pyslurm")
    except PackageNotFoundError:
        return None
