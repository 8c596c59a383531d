"""Whether munge, which signs everything that Slurm's parts say to each other, works on this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping

from liver_slurm.scheduler.slurm.command import first_line

_TIMEOUT = 10.0


def munge_problem(config: Mapping[str, str]) -> str | None:
    """Return why a credential that is made here cannot be read here; empty: it can; None: munge is not used, or not
    here.

    Args:
        config: Slurm's settings, which may name the socket of munged; empty: they are not known.
    """
    if config.get("AuthType", "auth/munge") != "auth/munge" or shutil.which("munge") is None:
        return None
    socket = re.search(r"socket=([^,\s]+)", config.get("AuthInfo", ""))
    option = [f"--socket={socket[1]}"] if socket else []
    try:
        made = subprocess.run(
            ["munge", "--no-input", *option], capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
        if made.returncode != 0:
            return first_line(made.stderr)
        read = subprocess.run(
            ["unmunge", *option], input=made.stdout, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"munged did not answer within {_TIMEOUT:g} s"
    return "" if read.returncode == 0 else first_line(read.stderr)
