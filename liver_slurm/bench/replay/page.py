"""Both runs in one page, for people: their worlds over time against what the trace offered, and the figures of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from liver_slurm.report.panels import Panel, Sizes, page, table, worlds


def render(panels: Sequence[Panel], offered: Sizes, document: Mapping[str, Any]) -> str:
    """Return the page of a replay. ``document``: its ``replay.json``."""
    ettrs = [f"{case['real']['ettr']:.1%} {name}" for name, case in document["cases"].items()]
    about = (
        f"{document['seconds']:.0f} s, {document['reclaims']} reclaims of {document['nodes']} nodes with a notice of "
        f"{document['notice_s']} s. Dashed: workers that the trace offers; filled: workers that train. Capacity "
        "goodput: device-seconds in steps that count, over those that the trace offers."
    )
    figure = worlds(panels, offered, document["seconds"], "workers that train over time, of both runs")
    rows = [row for name, case in document["cases"].items() for row in _rows(name, case)]
    body = figure + table(("run", "figure", "real", "simulated", "difference"), rows)
    return page("replay of a trace", f"Time in steps that count: {', '.join(ettrs)}", [about], body)


def _rows(name: str, case: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for figure, share in case["differs"].items():
        yield name, figure, f"{case['real'][figure]:.4f}", f"{case['simulated'][figure]:.4f}", f"{share:+.1%}"
