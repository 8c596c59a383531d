"""Paths that state can take between two workers of one host, and the raw link of each, measured in turns.

A path is what the product does with a link; :data:`PATHS` says by which function it is measured. Where there is none
yet, its raw link is measured all the same: that is what there is to be had.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

from liver_slurm.base.errors import LiverError
from liver_slurm.bench import our_links, raw_links
from liver_slurm.bench.raw_links import LINKS, SIZES
from liver_slurm.bench.two_ends import TwoEnds, two_ends

Rate = Callable[[TwoEnds, int, int], float]
"""Ends, bytes of a transfer and number of transfers → bytes a second; raises LiverError where it does not work."""


class Path(NamedTuple):
    """One path."""

    name: str
    raw: str
    """Name of its raw link in :data:`liver_slurm.bench.raw_links.LINKS`."""
    ours: Rate | None = None
    """None: the product does not go this way yet."""


PATHS = (
    Path("memory of one process", "memcpy"),
    Path("memory of one process, threads", "memcpy_threads"),
    Path("state of another process", "memcpy", our_links.read_host),
    Path("memory of another process", "process_vm_readv"),
    Path("loopback", "stream", our_links.read_tcp),
    Path("card to host", "device_to_host"),
    Path("host to card", "host_to_device"),
    Path("state on another card", "peer", our_links.read_card),
    Path("state on another card, both ways", "peer_both_ways", our_links.read_cards),
)


@dataclass(frozen=True)
class Effort:
    """How much is moved for each figure."""

    bytes: int
    """In one run, through the host."""
    card_bytes: int
    """In one run, from or to a card."""
    runs: int
    """Of the raw link and of ours, in turns; the figure is their median."""
    sizes: tuple[int, ...] = SIZES
    """Bytes of one transfer."""


QUICK = Effort(bytes=128 << 20, card_bytes=2 << 30, runs=1, sizes=SIZES[:2])
WHOLE = Effort(bytes=1 << 30, card_bytes=16 << 30, runs=5)


def measure(effort: Effort, cards: int, paths: tuple[Path, ...] = PATHS) -> list[dict[str, Any]]:
    """Measure each path and its raw link with each size; a path that cannot be measured says why.

    Args:
        cards: CUDA cards of this machine.
    """
    cases = []
    with ExitStack() as stack:
        ends = None
        for path in paths:
            if reason := raw_links.why_not(path.raw, cards):
                cases.append({"name": path.name, "raw": path.raw, "skipped": reason})
                continue
            print(f"    {path.name}", file=sys.stderr)
            ends = ends or stack.enter_context(two_ends(cards))
            try:
                cases += _cases(path, ends, effort)
            except LiverError as error:
                cases.append({"name": path.name, "raw": path.raw, "skipped": f"it failed: {error}"})
                stack.close()  # who knows what state they are in
                ends = None
    return cases


def _cases(path: Path, ends: TwoEnds, effort: Effort) -> Iterator[dict[str, Any]]:
    link = LINKS[path.raw]
    for size in effort.sizes:
        count = max(1, (effort.card_bytes if link.cards else effort.bytes) // size)
        rates = [(link.rate(ends, size, count), path.ours and path.ours(ends, size, count)) for _ in range(effort.runs)]
        raw = statistics.median(rate for rate, _ in rates)
        ours = statistics.median([rate for _, rate in rates if rate is not None]) if path.ours else None
        yield {
            "name": path.name,
            "raw": path.raw,
            "bytes": size,
            "gb_per_s": ours / 1e9 if ours is not None else None,
            "raw_gb_per_s": raw / 1e9,
            "ratio": ours / raw if ours is not None else None,
        }


def table(cases: list[dict[str, Any]]) -> str:
    """Return the cases for people."""
    from tabulate import tabulate

    rows = [
        [case["name"], case["raw"], "", "", "", case["skipped"]]
        if "skipped" in case
        else [
            case["name"],
            case["raw"],
            f"{case['bytes'] >> 20} MiB",
            f"{case['raw_gb_per_s']:.2f}",
            "–" if case["gb_per_s"] is None else f"{case['gb_per_s']:.2f}",
            "–" if case["ratio"] is None else f"{case['ratio']:.0%}",
        ]
        for case in cases
    ]
    return tabulate(rows, ["path", "raw link", "a transfer", "raw GB/s", "GB/s", "ratio"], disable_numparse=True)
