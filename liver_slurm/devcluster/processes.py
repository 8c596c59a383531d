"""Finding and ending a cluster's own processes: those whose environment names its slurm.conf, and no others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

DAEMONS = frozenset({"slurmctld", "slurmd", "slurmstepd", "slurmdbd", "munged", "mariadbd"})
POLL = 0.05
END = 60.0
"""Seconds after which processes that are still there are not tried to be ended again."""


def until(check: Callable[[], bool], timeout: float, interval: float = POLL) -> bool:
    """Wait until ``check()`` holds, for ``timeout`` seconds at most; returns whether it did."""
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval)
    return True


def cluster_processes(slurm_conf: Path) -> list[psutil.Process]:
    """Return the daemons of the cluster of ``slurm_conf``, and whatever its jobs have left behind.

    A shell in which somebody has exported SLURM_CONF is neither and is not listed.
    """
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            name = process.name()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # gone meanwhile, or another user's and so not of this cluster
        if environment.get("SLURM_CONF") == str(slurm_conf) and (name in DAEMONS or "SLURM_JOB_ID" in environment):
            found.append(process)
    return found


def names(processes: Iterable[psutil.Process]) -> dict[str, list[int]]:
    """Return process ids by the program's name."""
    result: dict[str, list[int]] = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # ended between the look and now
            result.setdefault(process.name(), []).append(process.pid)
    return result


def is_alive(process: psutil.Process) -> bool:
    """Return whether the process still runs; one that only waits to be reaped by its parent does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(processes: list[psutil.Process], patience: float) -> list[psutil.Process]:
    """Send SIGTERM, and after ``patience`` seconds SIGKILL to those still there; returns who survived both."""
    for signal_name, wait in (("terminate", patience), ("kill", 5.0)):
        processes = [process for process in processes if is_alive(process)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # ended on its own
                getattr(process, signal_name)()
        _wait_for_end(processes, wait)
    return [process for process in processes if is_alive(process)]


def end_all(slurm_conf: Path, patience: float) -> list[int]:
    """End the processes of a cluster, as :func:`end` does, until there are none; returns the ids of those left.

    They are looked for again each time: one may be forked, for an epilog say, after the others were found.
    """
    deadline = time.monotonic() + END
    while (found := cluster_processes(slurm_conf)) and time.monotonic() < deadline:
        end(found, patience)
    return sorted(process.pid for process in found)


def _wait_for_end(processes: list[psutil.Process], timeout: float) -> None:
    until(lambda: not any(is_alive(process) for process in processes), timeout)
