"""``bench transfer``: GB/s at which one process reads another's state, each way against its raw link, in turns.

What is read is state of a quarter of the staging memory, again and again. The raw link is given as much: libc's memcpy
for memory of the same machine, a plain TCP stream on the loopback interface for a connection.

The document's ``paths`` are the ways between two workers of one host, cards included: :mod:`liver_slurm.bench.paths`.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from liver_slurm.bench import machine, our_links, paths
from liver_slurm.bench.raw_links import LINKS
from liver_slurm.bench.two_ends import TwoEnds, two_ends

STAGING = tuple(mib << 20 for mib in (1, 4, 16, 64))
WINDOW = 4


class Way(NamedTuple):
    """One value of ``stream.transport``."""

    raw: str
    """Its raw link."""
    rate: Callable[[TwoEnds, int, int], float]


WAYS = {"shm": Way("memcpy", our_links.read_host), "tcp": Way("stream", our_links.read_tcp)}
if importlib.util.find_spec("nixl") is not None:
    WAYS["ucx"] = Way("stream", our_links.read_ucx)


@dataclass(frozen=True)
class _Effort:
    bytes: int
    """Moved in one run."""
    runs: int
    """Of the raw link and of ours, in turns."""


def run(quick: bool) -> dict[str, Any]:
    """Measure every way with every size."""
    effort = _Effort(bytes=64 << 20, runs=3) if quick else _Effort(bytes=512 << 20, runs=9)
    with two_ends(0) as ends:
        cases = [_case(ends, name, staging, effort) for name in WAYS for staging in STAGING]
    found = paths.measure(paths.QUICK if quick else paths.WHOLE, machine.count_gpus())
    return {"bench": "transfer", "bytes_per_run": effort.bytes, "runs": effort.runs, "cases": cases, "paths": found}


def table(document: dict[str, Any]) -> str:
    """Return the document for people."""
    from tabulate import tabulate

    rows = [
        [
            case["transport"],
            f"{case['staging_bytes'] >> 20} MiB",
            f"{case['gb_per_s']:.2f}",
            f"{case['raw_gb_per_s']:.2f}",
            case["raw"],
            f"{case['ratio']:.0%}",
        ]
        for case in document["cases"]
    ]
    headers = ["transport", "staging", "GB/s", "raw GB/s", "raw link", "ratio"]
    return tabulate(rows, headers, disable_numparse=True) + "\n\n" + paths.table(document["paths"])


def _case(ends: TwoEnds, name: str, staging: int, effort: _Effort) -> dict[str, Any]:
    """Return one way with one size: medians of runs that take turns with the raw link's."""
    way, size = WAYS[name], staging // WINDOW
    count = max(WINDOW, effort.bytes // size)
    rates = [(LINKS[way.raw].rate(ends, size, count), way.rate(ends, size, count)) for _ in range(effort.runs)]
    raw, ours = (statistics.median(some) for some in zip(*rates, strict=True))
    return {
        "name": f"{name}, {staging >> 20} MiB",
        "transport": name,
        "raw": way.raw,
        "staging_bytes": staging,
        "gb_per_s": ours / 1e9,
        "raw_gb_per_s": raw / 1e9,
        "ratio": ours / raw,
        "staging_peak_bytes": 0,  # what lies in host memory is read from where it lies to where it belongs
        "ring_bytes": 0,
    }
