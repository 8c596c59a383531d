"""The report's figures, drawn by matplotlib: the world's size, and what lies under it on the same axis of time."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from liver_slurm.observability.ledger.sizes import Steps
from liver_slurm.observability.ledger.step_table import Floats
from liver_slurm.report import palette
from liver_slurm.report.canvas import Style, add_heading, box, new_figure, settings
from liver_slurm.report.model import MARKED, Mark, Report, comparison, marks, parts, sentence, spread
from liver_slurm.report.strips import Strips, draw_strips
from liver_slurm.report.words import count, duration, unit_of

ROWS = {False: ("grow", "shrink"), True: ("grow", "grow", "shrink", "shrink")}
"""Rows of labels above the world's size, from the top; a narrow figure has two for each direction."""
PARTS = {False: 8, True: 3}
"""Parts of a run whose changes are too many to mark, by whether the figure is narrow."""
MOMENTS = {False: 280, True: 90}
"""Moments at which the size of such a run is drawn."""
LETTER = {False: 7.6, True: 7.0}
"""Width of a letter of a label at most, in units."""
LABEL = {False: 9.2, True: 8.3}
"""Size of its font."""


def world_figure(report: Report, style: Style) -> Figure:
    """Draw the world's size over time against what was offered, with a mark for each change."""
    height = 300 if style.narrow else 320
    with mpl.rc_context(settings(style)):
        figure = new_figure(style, height)
        axes = figure.add_axes(box(style, height, left=34, right=12, top=30 + 14 * len(ROWS[style.narrow]), bottom=44))
        draw_world(axes, report, style)
        return figure


def picture(report: Report, style: Style) -> Figure:
    """Draw the first figure with its headline above it, to stand alone."""
    top, height = 92, 430
    with mpl.rc_context(settings(style)):
        figure = new_figure(style, height)
        add_heading(figure, style, (sentence(report), comparison(report)), left=34, at=(26, 48), size=12.5)
        words = "filled: workers that train; dashed: workers that the cluster offered"
        figure.text(34 / style.width, 1 - 68 / height, words, color=style.theme.muted)
        axes = figure.add_axes(box(style, height, left=34, right=12, top=top + 30, bottom=44))
        draw_world(axes, report, style)
        return figure


def details_figure(report: Report, strips: Strips, style: Style) -> Figure:
    """Draw workers, tokens a second, loss and pauses below each other."""
    rows = min(420, max(70, (13 if strips.labelled else 3) * len(strips.labels)))
    panels = (("workers", rows), ("tokens", 110), ("loss", 130), ("pauses", 130))
    gap, top, bottom = 46, 26, 44
    height = top + bottom + sum(size for _, size in panels) + gap * (len(panels) - 1)
    with mpl.rc_context(settings(style)):
        figure = new_figure(style, height)
        at = top
        for name, size in panels:
            left = 78 if style.narrow else 104
            axes = figure.add_axes(box(style, height, left=left, right=12, top=at, bottom=height - at - size))
            at += size + gap
            if name == "workers":
                draw_strips(axes, strips, report)
                axes.set_title("What each worker did")
            elif name == "tokens":
                _draw_tokens(axes, report, style)
            elif name == "loss":
                _draw_loss(axes, report, style)
            else:
                _draw_pauses(axes, report)
            _time_axis(axes, report, style, last=name == "pauses")
        return figure


def _time_axis(axes: Axes, report: Report, style: Style, last: bool = True) -> None:
    name, unit = unit_of(report.length)
    axes.set_facecolor("none")
    axes.set_xlim(0.0, report.length / unit)
    axes.xaxis.set_major_locator(MaxNLocator(5 if style.narrow else 10, min_n_ticks=2, steps=[1, 2, 5, 10]))
    axes.margins(x=0)
    if last:
        axes.set_xlabel(f"{name} since the run was created")


def draw_world(axes: Axes, report: Report, style: Style) -> None:
    """Draw the first figure's only panel."""
    theme, (_, unit) = style.theme, unit_of(report.length)
    top = max([2, *report.world.counts, *report.offered.counts])
    dashed: dict[str, Any] = {"color": theme.muted, "linewidth": 1.3, "linestyle": (0, (4, 2.5))}
    if len(report.offered.times) <= 2 * MOMENTS[style.narrow]:
        times, counts = _stairs(report.offered, unit)
        axes.step(times, counts, where="post", **dashed)
    else:
        offered = spread(report.offered, MOMENTS[style.narrow])
        axes.plot(offered.times / unit, offered.mean, **dashed)
    found = marks(report)
    if len(found) <= MARKED:
        times, counts = _stairs(report.world, unit)
        axes.fill_between(times, counts, step="post", color=theme.area, linewidth=0)
        axes.step(times, counts, where="post", color=theme.line, linewidth=2.2)
    else:
        sizes = spread(report.world, MOMENTS[style.narrow])
        axes.fill_between(sizes.times / unit, sizes.mean, color=theme.area, linewidth=0)
        axes.fill_between(sizes.times / unit, sizes.least, sizes.most, color=theme.line, alpha=0.25, linewidth=0)
        axes.plot(sizes.times / unit, sizes.mean, color=theme.line, linewidth=2.2)
    axes.set_ylim(0, top * 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(axis="x", visible=False)
    _time_axis(axes, report, style)
    if len(found) <= MARKED:
        _draw_marks(axes, report, style, top * 1.08)
    else:
        _draw_parts(axes, report, style)


def _stairs(steps: Steps, unit: float) -> tuple[list[float], list[int]]:
    """Return the corners of a stair, without the last ones, in which workers leave one after the other."""
    if not steps.counts:  # of a run that was created this moment
        return [0.0], [0]
    times, counts = list(steps.times), list(steps.counts)
    shortest = (times[-1] - times[0]) / 200
    while len(counts) > 1 and times[-1] - times[-2] < shortest:
        counts.pop()
        del times[-2]
    return [time / unit for time in times], [*counts, *counts[-1:]]


def _draw_marks(axes: Axes, report: Report, style: Style, top: float) -> None:
    """Draw a line at each change, and above the panel what it was and what it cost."""
    _, unit = unit_of(report.length)
    found = marks(report)
    for index, mark in enumerate(found):
        line = axes.axvline(mark.time / unit, color=colour_of(mark), linewidth=1.2, alpha=0.9)
        line.set_gid(f"mark-{index}")
    for shape, colour in (("^", palette.GROW), ("v", palette.SHRINK), ("D", palette.RESHAPE)):
        times = [mark.time / unit for mark in found if shape_of(mark) == shape]
        axes.plot(times, [top] * len(times), shape, color=colour, markersize=7.0, clip_on=False, zorder=5)
    _draw_labels(axes, report, style, found)


def _draw_parts(axes: Axes, report: Report, style: Style) -> None:
    """Write above each part of the run how often it grew and shrank there, and what that cost."""
    _, unit = unit_of(report.length)
    number = PARTS[style.narrow]
    words: dict[str, Any] = {"textcoords": "offset points", "va": "bottom", "fontweight": "bold"}
    for index, part in enumerate(parts(report, number)):
        if index:
            axes.axvline(index * report.length / number / unit, color=style.theme.grid, linewidth=1.0)
        at, letters = ((index + 0.5) / number, 1.0), {**words, "fontsize": LABEL[style.narrow]}
        for text, offset, side, colour in (
            (f"▲ {part.grew:,}", (-4, 6), "right", palette.GROW),
            (f"▼ {part.shrank:,}", (4, 6), "left", palette.SHRINK),
            (f"cost {duration(part.cost_s)}", (0, 18), "center", style.theme.ink),
        ):
            axes.annotate(text, at, xycoords="axes fraction", xytext=offset, ha=side, color=colour, **letters)
        if part.reshaped:
            text = f"◆ {part.reshaped:,}"
            axes.annotate(
                text, at, xycoords="axes fraction", xytext=(0, 30), ha="center", color=palette.RESHAPE, **letters
            )


def _draw_labels(axes: Axes, report: Report, style: Style, found: list[Mark]) -> None:
    """Write what the marks say; where two would touch, the costlier one stays."""
    across = style.width - 46.0
    rows = ROWS[style.narrow]
    taken: list[list[tuple[float, float]]] = [[] for _ in rows]
    for mark in sorted(found, key=lambda mark: -mark.cost_s):
        text = label(mark, style.narrow)
        half = LETTER[style.narrow] * len(text) / 2 + 4
        place = min(max(mark.time / report.length * across, half - 20), across - half + 8)
        free = [
            row
            for row, direction in enumerate(rows)
            if (direction == "grow") == mark.grows
            and not any(begin < place + half and place - half < end for begin, end in taken[row])
        ]
        if not free:
            continue
        row = free[-1]
        taken[row].append((place - half, place + half))
        axes.annotate(
            text, (place / across, 1.0), xycoords="axes fraction", xytext=(0, 10 + 10 * (len(rows) - 1 - row)),
            textcoords="offset points", ha="center", va="bottom", color=colour_of(mark), fontweight="bold",
            fontsize=LABEL[style.narrow],
        )  # fmt: skip


def label(mark: Mark, narrow: bool) -> str:
    """Write what a mark says in the figure."""
    arrow = "▲" if mark.grows else "▼" if mark.shrinks else "◆"
    sizes = f"{arrow} {mark.before}→{mark.after}"
    if narrow:
        return f"{sizes}  {duration(mark.cost_s)}"
    return f"{sizes} at {duration(mark.time)}, cost {duration(mark.cost_s)}"


def told(mark: Mark) -> str:
    """Write what a mark says when one points at it."""
    many = f", {count(len(mark.changes), 'change')}" if len(mark.changes) > 1 else ""
    reasons = "; ".join(dict.fromkeys(change.reason for change in mark.changes if change.reason))
    return f"{mark.before} to {mark.after} workers{many}, training lost {duration(mark.cost_s)}: {reasons}"


def colour_of(mark: Mark) -> str:
    """Return a mark's colour."""
    return palette.GROW if mark.grows else palette.SHRINK if mark.shrinks else palette.RESHAPE


def shape_of(mark: Mark) -> str:
    """Return a mark's shape, which says the same as its colour."""
    return "^" if mark.grows else "v" if mark.shrinks else "D"


def _apart(points: Floats, length: float) -> Floats:
    """Leave out points that lie on others, as far as the eye can tell; the vertical scale is logarithmic."""
    places = np.stack([np.round(points[:, 0] / length * 400), np.round(np.log10(points[:, 1]) * 20)], axis=1)
    _, kept = np.unique(places, axis=0, return_index=True)
    return points[np.sort(kept)]


def _draw_tokens(axes: Axes, report: Report, style: Style) -> None:
    _, unit = unit_of(report.length)
    axes.set_title("Tokens a second")
    axes.step(report.tokens.times / unit, report.tokens.values, where="mid", color=style.theme.line, linewidth=1.4)
    axes.set_ylim(bottom=0.0)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_loss(axes: Axes, report: Report, style: Style) -> None:
    _, unit = unit_of(report.length)
    title, theme = "Loss", style.theme
    if report.undisturbed is not None:
        title += " (undisturbed" if style.narrow else ", over that of the undisturbed run (the same"
        title += ")" if report.difference is None else f" within {report.difference:.0e})"
        curve = report.undisturbed
        axes.plot(curve.times / unit, curve.values, color=palette.ORANGE, linewidth=4.0, alpha=0.55)
    axes.plot(report.loss.times / unit, report.loss.values, color=theme.line, linewidth=1.4)
    held_out = report.validations
    if len(held_out.times):
        title += "; dots: of validation"
        axes.plot(held_out.times / unit, held_out.values, "o", color=palette.VERMILLION, markersize=4.5)
    axes.set_title(title)
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _draw_pauses(axes: Axes, report: Report) -> None:
    """Draw what each change cost, on a logarithmic scale, as a restart is a hundred times that."""
    _, unit = unit_of(report.length)
    axes.set_title("What training lost by each change" if report.changes else "There was no change")
    restart = report.ledger.restarted.restart_s
    if not report.changes:
        axes.set_yticks([])
        return
    least = 1e-3
    for colour, shape, kept in (
        (palette.GROW, "^", [change for change in report.changes if change.after > change.before]),
        (palette.SHRINK, "v", [change for change in report.changes if change.after < change.before]),
        (palette.RESHAPE, "D", [change for change in report.changes if change.after == change.before]),
    ):
        at = np.array([[report.since(change.cutover) / unit, max(least, change.exposed_s)] for change in kept])
        times, costs = _apart(at.reshape(-1, 2), report.length / unit).T
        axes.plot(times, costs, shape, color=colour, markersize=5.5)
    axes.set_yscale("log")
    highest = max([1.0, *(change.exposed_s for change in report.changes)])
    lowest = min(max(least, change.exposed_s) for change in report.changes)
    if restart is not None:
        restart += report.ledger.restarted.save_s
        highest = max(highest, restart)
        axes.axhline(restart, color=palette.ORANGE, linewidth=1.6, linestyle=(0, (4, 2.5)))
        axes.annotate(
            f"a checkpoint and a restart: {duration(restart)}", (1.0, restart), xycoords=("axes fraction", "data"),
            xytext=(-4, 3), textcoords="offset points", ha="right", va="bottom",
        )  # fmt: skip
    axes.set_ylim(lowest / 3, highest * 6)
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
