"""``bench policies`` with several seeds, in several processes: each simulates one partition with one seed at a time.

``python -m liver_slurm.bench.policy_seeds`` is such a process; it gets one argument, a JSON document, and prints one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from typing import Any

import msgspec

from liver_slurm.base.errors import LiverError
from liver_slurm.simulation.regimes import REGIMES
from liver_slurm.simulation.seeds import interval


class Part(msgspec.Struct, frozen=True):
    """What one process simulates."""

    quick: bool
    traces: tuple[str, ...]
    place: int
    """Number of the partition, among the made-up ones and those of ``traces``."""
    seed: int
    several: bool
    """It is one of several seeds."""


def in_processes(
    quick: bool, traces: Sequence[str], places: int, seeds: Sequence[int], jobs: int
) -> list[dict[str, Any]]:
    """Simulate all partitions with all seeds, ``jobs`` at a time; returns the rows of all, seed by seed.

    Raises:
        LiverError: a process has failed.
    """
    paths = tuple(os.path.abspath(path) for path in traces)
    parts = [Part(quick, paths, place, seed, len(seeds) > 1) for seed in seeds for place in range(places)]
    # Made-up partitions take longest, the volatile one, which is the last of them, most of all: they begin.
    first = sorted(parts, key=lambda part: (part.place >= len(REGIMES), -part.place))
    pool = ThreadPoolExecutor(max_workers=jobs)
    try:
        found = dict(zip(first, pool.map(_in_process, first), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
    return [row for part in parts for row in found[part]]


def _in_process(part: Part) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", __name__, msgspec.json.encode(part).decode()]
    # One core for each: libraries of linear algebra would take all that there are.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise LiverError(f"bench policies: partition {part.place} with seed {part.seed} failed: {last}")
    rows: list[dict[str, Any]] = msgspec.json.decode(done.stdout)
    return rows


def over_seeds(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make one row of those of all seeds, for each policy on each partition.

    The mean of a seed's runs counts as one observation; ``from`` and ``to`` have the mean of all seeds with 95 %.
    What is said beside twins is of one log each, and stays with the seeds.
    """
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if "policy" in row:
            grouped.setdefault((row["part"], row["policy"]), []).append(row)
    found = []
    for (part, policy), same in grouped.items():
        more = [row["over greedy"] for row in same]
        low, high = interval(more) if any(more) and len(more) > 1 else (0.0, 0.0)
        opened = [row["gate opens"].partition(" of ") for row in same if row["gate opens"]]
        found.append(
            {
                "part": part, "policy": policy, "goodput": fmean(row["goodput"] for row in same),
                "over greedy": fmean(more), "from": low, "to": high,
                "gate opens": f"{sum(int(one) for one, _, _ in opened)} of {sum(int(all_) for _, _, all_ in opened)}"
                if opened else "",
            }
        )  # fmt: skip
    return found


def main(text: str) -> None:
    """Simulate one part, and print its rows."""
    from liver_slurm.bench import policies

    part = msgspec.json.decode(text, type=Part)
    place = policies.make_places(part.traces)[part.place]
    rows = policies.compared(place, policies.make_sizes(part.quick, part.several), part.seed)
    sys.stdout.buffer.write(msgspec.json.encode(rows))


if __name__ == "__main__":
    main(sys.argv[1])
