"""What ``liver-slurm bench`` measures: a module for each, and the table of them that ``--help`` shows.

Each module has ``run(quick) -> document`` and ``table(document) -> text for people``. A document is
``{"bench": NAME, "cases": [{"name", …}], …}``; every ratio is of a baseline and ours measured in turns in the same run.
"""

from __future__ import annotations

from typing import Any, Protocol

BENCHES = {
    "train": "tokens/s and MFU against plain compiled PyTorch",
    "transfer": "GB/s of each transport against the raw link",
    "reconfigure": "pause and overlap against checkpoint/restart",
    "plan": "time and memory of planning, up to 16,384 ranks",
    "overhead": "what elasticity costs a job that never resizes",
}
"""All benchmarks with their help. A table, so that --help imports none of them."""


class Bench(Protocol):
    """What a benchmark's module has."""

    def run(self, quick: bool) -> dict[str, Any]:
        """Measure; ``quick``: the smallest case of each, under a minute in all."""

    def table(self, document: dict[str, Any]) -> str:
        """The document for people."""
