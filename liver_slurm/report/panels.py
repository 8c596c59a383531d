"""A page of several runs one below the other: the workers that train over time, against those that were offered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import matplotlib as mpl
from matplotlib.ticker import MaxNLocator

from liver_slurm.report.canvas import Style, box, new_figure, settings
from liver_slurm.report.palette import STAND_INS, css
from liver_slurm.report.svg import to_svg

Sizes = Sequence[tuple[float, int]]
"""From which second on how many workers train, or are offered."""
WIDTH, PANEL, GAP = 1160, 170, 46
STYLE = """
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 14px 20px 40px; }
h1 { font-size: 25px; line-height: 1.25; margin: 6px 0; }
p { color: var(--muted); } svg { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 18px 0; }
th { text-align: left; color: var(--muted); } th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--grid); }
"""
_UNITS = ((1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"), (86400.0, "days"))
_MOST_TICKS = 1500.0
"""Of a time axis: where it is longer, the next larger unit is used."""


@dataclass(frozen=True)
class Panel:
    """One run over time."""

    title: str
    sizes: Sizes


def page(title: str, headline: str, about: Iterable[str], body: str) -> str:
    """Return a page; ``body`` is HTML, all else text."""
    told = "".join(f"<p>{escape(line)}</p>" for line in about)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{css()}{STYLE}</style></head><body><main><h1>{escape(headline)}</h1>{told}{body}</main></body></html>\n"
    )


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table as HTML, of texts."""
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def worlds(panels: Sequence[Panel], offered: Sizes, seconds: float, title: str) -> str:
    """Return the figure as SVG: a panel for each run, the workers that train filled, those on offer dashed.

    Args:
        panels: at least one, with at least one size each.
        offered: likewise, for all of them.
        seconds: how long it goes.
        title: what it shows, for those who do not see it.
    """
    style = Style(WIDTH, STAND_INS)
    height = len(panels) * (PANEL + GAP) + 20
    top = max(1, *(count for _, count in offered), *(count for panel in panels for _, count in panel.sizes))
    scale, unit = next((one for one in _UNITS if seconds <= _MOST_TICKS * one[0]), _UNITS[-1])
    with mpl.rc_context(settings(style)):
        figure = new_figure(style, height)
        for number, panel in enumerate(panels):
            above = 26 + number * (PANEL + GAP)
            place = box(style, height, left=44, right=12, top=above, bottom=height - above - PANEL)
            axes = figure.add_axes(place)
            times, counts = _stairs(panel.sizes, seconds, scale)
            axes.fill_between(times, counts, step="post", color=style.theme.area, linewidth=0)
            axes.step(times, counts, where="post", color=style.theme.line, linewidth=2.0)
            times, counts = _stairs(offered, seconds, scale)
            axes.step(times, counts, where="post", color=style.theme.muted, linewidth=1.3, linestyle=(0, (4, 2.5)))
            axes.set_title(panel.title)
            axes.set_facecolor("none")
            axes.set_xlim(0.0, seconds / scale)
            axes.set_ylim(0, top * 1.08)
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel(f"{unit} since the trace began")
        return to_svg(figure, "worlds", title, {})


def _stairs(sizes: Sizes, seconds: float, scale: float) -> tuple[list[float], list[int]]:
    inside = [(min(max(0.0, time), seconds) / scale, count) for time, count in sizes] or [(0.0, 0)]
    if inside[0][0] > 0.0:
        inside.insert(0, (0.0, 0))
    return [*(time for time, _ in inside), seconds / scale], [*(count for _, count in inside), inside[-1][1]]
