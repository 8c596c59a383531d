"""Host memory that this process may still have: what its machine has left, and what its control groups allow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def available_memory(root: Path = ROOT) -> int:
    """Return the bytes of host memory that the kernel would still give.

    Slurm bounds a job by a control group. Groups of version 2 are looked at, with all above them.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    with (root / "proc/meminfo").open() as file:
        machine = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    return max(0, min(machine, *_allowed(root)))


def _allowed(root: Path) -> Iterator[int]:
    """Yield what each control group around this process has left; a number that is no bound, where there is none."""
    yield 1 << 62
    mounted = root / "sys/fs/cgroup"
    groups = root / "proc/self/cgroup"
    if not groups.exists():
        return
    for line in groups.read_text().splitlines():
        number, _, path = line.split(":", 2)
        if number != "0":
            continue  # of version 1
        group = mounted / path.lstrip("/")
        while group != mounted and mounted in group.parents:
            limit = group / "memory.max"
            if limit.exists() and (most := limit.read_text().strip()) != "max":
                taken = int((group / "memory.current").read_text())
                yield int(most) - taken + _reclaimable(group / "memory.stat")
            group = group.parent


def _reclaimable(statistics: Path) -> int:
    """Return the bytes of files' pages that nobody used lately.

    They count as taken, but are given up when memory is needed.
    """
    lines = statistics.read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
