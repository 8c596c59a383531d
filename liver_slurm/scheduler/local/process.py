"""Starting the product's processes on one machine, so that none outlives the run."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # here and not in the child, which may not take locks between fork and exec


def start(
    module: str,
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    die_with_parent: signal.Signals | None,
) -> subprocess.Popen[bytes]:
    """Start ``python -m module`` in a session of its own, its output appended to ``log``.

    A session of its own: Ctrl-C at a terminal reaches the runner only, which ends things in order.

    Args:
        die_with_parent: signal that the kernel sends when the thread that starts it ends, however it ends.
    """
    # A run of plain processes may be started inside a Slurm job; its processes are not that job's tasks.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PMI"))}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**inherited, **environment},
            start_new_session=True,
            preexec_fn=tie_to_parent(die_with_parent) if die_with_parent is not None else None,
        )


def worker_environment(index: int, workers: int, gpus: bool) -> dict[str, str]:
    """Return what worker number ``index`` of at most ``workers`` on this machine needs; what the user has set wins.

    Without cards a worker computes with half of its share of the cores: the other half is its control thread's, which
    moves state while training runs, and a team of which one thread waits for a core waits as a whole.

    The place among the others is told in torchrun's variables: :mod:`liver_slurm.worker.device` chooses a card by it.
    """
    wanted = {"GLOO_SOCKET_IFNAME": "lo"}
    if gpus:
        wanted["NCCL_SOCKET_IFNAME"] = "lo"
    else:
        wanted["OMP_NUM_THREADS"] = str(max(len(os.sched_getaffinity(0)) // (2 * workers), 1))
    place = {"LOCAL_RANK": str(index), "LOCAL_WORLD_SIZE": str(workers)}
    return {variable: value for variable, value in wanted.items() if variable not in os.environ} | place


def tie_to_parent(number: signal.Signals) -> Callable[[], None]:
    """Make what a child calls before it executes its program, so that it is sent the signal when its parent ends."""
    parent = os.getpid()

    def tie() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel knew
            os._exit(1)

    return tie
