"""Both runs in one page, for people: their worlds over time against what the trace offered, and the figures of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.ticker import MaxNLocator

from liver_slurm.report.canvas import Style, box, new_figure, settings
from liver_slurm.report.palette import STAND_INS, css
from liver_slurm.report.svg import to_svg

Sizes = Sequence[tuple[float, int]]
"""From which second of the trace on how many workers train."""
WIDTH, PANEL, GAP = 1160, 170, 46
STYLE = """
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 14px 20px 40px; }
h1 { font-size: 25px; line-height: 1.25; margin: 6px 0; }
p { color: var(--muted); } svg { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--muted); } th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--grid); }
"""


@dataclass(frozen=True)
class Panel:
    """One run over time."""

    title: str
    sizes: Sizes


def render(panels: Sequence[Panel], offered: Sizes, document: Mapping[str, Any]) -> str:
    """Return the page of a replay. ``document``: its ``replay.json``."""
    rows = "".join(_rows(name, case) for name, case in document["cases"].items())
    ettrs = [f"{case['real']['ettr']:.1%} {name}" for name, case in document["cases"].items()]
    about = (
        f"{document['seconds']:.0f} s, {document['reclaims']} reclaims of {document['nodes']} nodes with a notice of "
        f"{document['notice_s']} s. Dashed: workers that the trace offers; filled: workers that train. Capacity "
        "goodput: device-seconds in steps that count, over those that the trace offers."
    )
    heads = ("run", "figure", "real", "simulated", "difference")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>replay of a trace</title>'
        f"<style>{css()}{STYLE}</style></head><body><main><h1>Time in steps that count: {escape(', '.join(ettrs))}</h1>"
        f"<p>{escape(about)}</p>{_figure(panels, offered, document['seconds'])}"
        f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{rows}</table></main></body></html>\n"
    )


def _rows(name: str, case: Mapping[str, Any]) -> str:
    found = []
    for figure, share in case["differs"].items():
        cells = (name, figure, f"{case['real'][figure]:.4f}", f"{case['simulated'][figure]:.4f}", f"{share:+.1%}")
        found.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return "".join(found)


def _figure(panels: Sequence[Panel], offered: Sizes, seconds: float) -> str:
    style = Style(WIDTH, STAND_INS)
    height = len(panels) * (PANEL + GAP) + 20
    top = max(count for _, count in offered)
    with mpl.rc_context(settings(style)):
        figure = new_figure(style, height)
        for number, panel in enumerate(panels):
            above = 26 + number * (PANEL + GAP)
            place = box(style, height, left=34, right=12, top=above, bottom=height - above - PANEL)
            axes = figure.add_axes(place)
            times, counts = _stairs(panel.sizes, seconds)
            axes.fill_between(times, counts, step="post", color=style.theme.area, linewidth=0)
            axes.step(times, counts, where="post", color=style.theme.line, linewidth=2.0)
            times, counts = _stairs(offered, seconds)
            axes.step(times, counts, where="post", color=style.theme.muted, linewidth=1.3, linestyle=(0, (4, 2.5)))
            axes.set_title(panel.title)
            axes.set_facecolor("none")
            axes.set_xlim(0.0, seconds)
            axes.set_ylim(0, top * 1.08)
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("seconds since the trace began")
        return to_svg(figure, "replay", "workers that train over time, of both runs", {})


def _stairs(sizes: Sizes, seconds: float) -> tuple[list[float], list[int]]:
    inside = [(min(max(0.0, time), seconds), count) for time, count in sizes]
    return [*(time for time, _ in inside), seconds], [*(count for _, count in inside), inside[-1][1]]
