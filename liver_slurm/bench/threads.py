"""CPU time of the threads of processes, read from outside, and which of them are there for elasticity."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_NANO = 1e-9
TRAINING = ("gloo_", "pt_", "nccl", "cuda", "iou-")
"""How names of threads begin that torch, gloo and NCCL start for training itself."""


@dataclass(frozen=True)
class Thread:
    """One thread of a process."""

    pid: int
    tid: int
    name: str
    """As the kernel has it; Python before 3.14 leaves its threads the process's name."""
    seconds: float
    """CPU time so far."""

    @property
    def ours(self) -> bool:
        """Is it there for elasticity? What is neither the main thread nor known to be training's counts as ours."""
        return self.tid != self.pid and not self.name.startswith(TRAINING)


def read_threads(pids: Iterable[int], proc: Path = Path("/proc")) -> list[Thread]:
    """Return all threads of these processes now; those that end meanwhile are left out."""
    found = []
    for pid in pids:
        for folder in (proc / str(pid) / "task").iterdir():
            thread = _read(pid, folder)
            if thread is not None:
                found.append(thread)
    return found


def _read(pid: int, folder: Path) -> Thread | None:
    try:
        name = (folder / "comm").read_text().strip()
        return Thread(pid, int(folder.name), name, _seconds(folder))
    except (FileNotFoundError, ProcessLookupError):
        return None


def _seconds(folder: Path) -> float:
    """Read the scheduler's own count where the kernel keeps it: clock ticks are too coarse for a thread that idles."""
    schedstat = folder / "schedstat"
    if schedstat.exists():
        return int(schedstat.read_text().split()[0]) * _NANO
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spent(before: Iterable[Thread], after: Iterable[Thread]) -> list[Thread]:
    """Return what each thread has used between two looks; one that began in between, all of its time."""
    earlier = {(thread.pid, thread.tid): thread.seconds for thread in before}
    return [
        Thread(thread.pid, thread.tid, thread.name, thread.seconds - earlier.get((thread.pid, thread.tid), 0.0))
        for thread in after
    ]


def share(used: Iterable[Thread]) -> float:
    """Return CPU time of our threads over that of all."""
    used = list(used)
    return sum(thread.seconds for thread in used if thread.ours) / sum(thread.seconds for thread in used)


def by_name(used: Iterable[Thread]) -> dict[str, float]:
    """Return CPU seconds by kind of thread; the main threads are ``training``."""
    total: dict[str, float] = defaultdict(float)
    for thread in used:
        total["training" if thread.tid == thread.pid else thread.name] += thread.seconds
    return dict(total)
