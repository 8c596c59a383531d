"""What ``liver-slurm bench`` measures: a module for each, and the table of them that ``--help`` shows.

Each module has ``run(quick) -> document`` and ``table(document) -> text for people``; where models of several sizes can
be measured it is ``run(quick, sizes)``. A document is ``{"bench": NAME, "cases": [{"name", …}], …}``; every ratio is of
a baseline and ours measured in turns in the same run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

BENCHES = {
    "train": "tokens/s and MFU against plain compiled PyTorch",
    "transfer": "GB/s of each transport against the raw link",
    "reconfigure": "pause and overlap against checkpoint/restart",
    "recovery": "a killed worker: mirrors and checkpoints against a restart",
    "plan": "time and memory of planning, up to 16,384 ranks",
    "overhead": "what elasticity costs a job that never resizes",
    "advisor": "estimates and learned rules where the truth is known",
    "policies": "goodput of each policy on simulated partitions, the advisor's too",
}
"""All benchmarks with their help. A table, so that --help imports none of them."""
_SIZES = ("15M", "110M", "400M", "1.3B")
SIZED = {"reconfigure": _SIZES, "recovery": _SIZES, "overhead": _SIZES}
"""Benchmarks of which models can be chosen, and the names of these."""


class Bench(Protocol):
    """What a benchmark's module has."""

    def run(self, quick: bool, **options: Any) -> dict[str, Any]:
        """Measure; ``quick``: the smallest case of each, under a minute in all; ``options``: what it has besides."""

    def table(self, document: dict[str, Any]) -> str:
        """Return the document for people."""


def part_tables(cases: Sequence[Mapping[str, Any]], without: Collection[str] = ()) -> str:
    """Show a table of each part's cases, in their order; ``without``: keys that are left out."""
    from tabulate import tabulate

    parts: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        row = {key: value for key, value in case.items() if key != "part" and key not in without}
        parts.setdefault(case["part"], []).append(row)
    return "\n\n".join(f"{part}\n{tabulate(rows, headers='keys', floatfmt='.3f')}" for part, rows in parts.items())
