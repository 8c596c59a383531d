"""Which back end of the Slurm client is used: pyslurm where it fits the cluster, else Slurm's own commands."""

from __future__ import annotations

import os
from collections.abc import Mapping

from liver_slurm.errors import BadInput
from liver_slurm.slurm.client import CommandClient, SlurmClient

CHOICE = "LIVER_SLURM_CLIENT"
"""Environment variable that forces a back end: ``commands`` or ``pyslurm``."""


def connect(environment: Mapping[str, str] | None = None, timeout: float = 30.0) -> SlurmClient:
    """A client of the cluster that ``environment`` (default: ours) names; each question may take ``timeout`` seconds.

    Raises:
        BadInput: :data:`CHOICE` names no back end.
    """
    choice = (os.environ if environment is None else environment).get(CHOICE, "")
    if choice not in ("", "commands"):
        raise BadInput(f"{CHOICE}={choice}: say commands, or unset it")
    return CommandClient(environment, timeout)
