"""Pictures of an advisor's model: what policies are worth, how far was looked, what it rests on, what was tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from liver_slurm.advisor import model as advice
from liver_slurm.advisor.horizon import span
from liver_slurm.advisor.summary import LEARNED, TAKE
from liver_slurm.report import palette
from liver_slurm.report.canvas import Style, add_heading, box, fit_in, new_figure, settings

BETTER, WORSE, UNSURE = palette.GROW, palette.SHRINK, palette.GREY
ROW, HEAD, FOOT, GAP = 42, 52, 40, 18
"""Heights in units: of a row, above and below a panel, between two."""
HIGH = 130
"""Of a panel without rows."""
LEFT, RIGHT, EDGE = 126, 14, 20
"""Units beside a panel, where its rows have their names, and before its title."""
LETTER = 7.2
"""Width of a letter at most, in units."""
BAR = 0.5
"""Height of a bar, of a row's."""


@dataclass(frozen=True)
class Panel:
    """One panel: what it is called, how high it is, and what draws it."""

    title: str
    told: str
    """What is to be read from it."""
    height: int
    draw: Callable[[Axes, Style], None]


@dataclass(frozen=True)
class _Row:
    name: str
    figure: advice.Figure | None
    bold: bool = False


def panels(model: advice.Model) -> list[Panel]:
    """Return the panels for which a model has something to show."""
    found = []
    if worth := [one for one in model.worth if one.gain is not None]:
        rows = [_Row(f"{one.name}\ntakes {one.taken:.0%}", one.gain, one.name == _followed(model)) for one in worth]
        told = "right of the line: better than that; bars: 95 %"
        found.append(Panel("Gain over taking always", told, ROW * len(rows), _forest(rows, "seconds a decision")))
    if windows := [one for one in model.horizons if one.effect is not None]:
        rows = [
            _Row(f"within {span(one.window_s)}" + ("\ncounts" if one.window_s == model.window_s else ""), one.effect,
                 one.window_s == model.window_s)
            for one in windows
        ]  # fmt: skip
        told = "right of the line: taking is better than leaving; bars: 95 %"
        found.append(Panel("Gain of taking, by how far one looks", told, ROW * len(rows), _forest(rows, "seconds")))
    if model.weights:
        told = "pale: decided, middle: seen, dark: worth at equal weight"
        found.append(
            Panel("How many decisions it rests on", told, 2 * ROW, lambda axes, style: _draw_rests(axes, style, model))
        )
    if model.overlap:
        told = "up: taken, down: left" + ("; dashed: offers elsewhere" if model.target_decisions else "")
        found.append(
            Panel("Where both actions were tried", told, HIGH, lambda axes, style: _draw_overlap(axes, style, model))
        )
    return found


def headline(model: advice.Model) -> str:
    """Return the verdict in a few words."""
    if model.advises:
        return "Advice: follow the learned rule"
    return "No advice: take whatever is on offer, as greedy does"


def subline(model: advice.Model) -> str:
    """Return what the verdict rests on."""
    where = f", for {model.target_decisions:,} offers elsewhere" if model.target_decisions else ""
    return f"{model.verdict[0].upper()}{model.verdict[1:]}{where}"


def panels_figure(model: advice.Model, style: Style) -> Figure:
    """Draw all panels: two beside each other, or below each other where it is narrow."""
    with mpl.rc_context(settings(style)):
        return _draw(model, style, 0)


def picture(model: advice.Model, style: Style) -> Figure:
    """Draw all panels under their headline, to stand alone."""
    with mpl.rc_context(settings(style)):
        figure = _draw(model, style, 84)
        add_heading(figure, style, (headline(model), subline(model)), left=EDGE, at=(34, 58), size=14)
        return figure


def _draw(model: advice.Model, style: Style, top: int) -> Figure:
    shown = panels(model)
    across = 1 if style.narrow else 2
    rows = [shown[first : first + across] for first in range(0, len(shown), across)]
    height = top + sum(HEAD + FOOT + GAP + max(one.height for one in row) for row in rows)
    figure = new_figure(style, max(height, top + GAP))
    wide = style.width / across
    at = top
    for row in rows:
        for column, panel in enumerate(row):
            left = int(column * wide) + LEFT
            right = int(style.width - (column + 1) * wide) + RIGHT
            bottom = height - at - HEAD - panel.height
            axes = figure.add_axes(box(style, height, left=left, right=right, top=at + HEAD, bottom=bottom))
            axes.set_facecolor("none")
            panel.draw(axes, style)
            edge = (left - LEFT + EDGE) / style.width
            figure.text(
                edge, 1 - (at + 18) / height, panel.title, fontsize=10, fontweight="bold", color=style.theme.ink
            )
            told = figure.text(edge, 1 - (at + 35) / height, panel.told, color=style.theme.muted)
            fit_in(figure, [told], (style.width - right - left + LEFT - EDGE) / style.width)
        at += HEAD + FOOT + GAP + max(one.height for one in row)
    return figure


def _followed(model: advice.Model) -> str:
    return LEARNED if model.advises else TAKE


def _forest(rows: Sequence[_Row], unit: str) -> Callable[[Axes, Style], None]:
    """Return what draws each row's estimate with its interval beside a line at 0."""

    def draw(axes: Axes, style: Style) -> None:
        theme = style.theme
        axes.axvline(0.0, color=theme.muted, linewidth=1.2)
        for at, row in enumerate(rows):
            found = row.figure
            assert found is not None
            colour = BETTER if found.low > 0.0 else WORSE if found.high < 0.0 else UNSURE
            axes.plot(
                [found.low, found.high], [at, at], color=colour, linewidth=5.0, solid_capstyle="round", alpha=0.45
            )
            axes.plot([found.value], [at], "o", color=colour, markersize=7.0)
        _name_rows(axes, rows, style)
        ends = [end for row in rows if row.figure is not None for end in (row.figure.low, row.figure.high, 0.0)]
        reach = max(max(ends) - min(ends), 1.0)
        axes.set_xlim(min(ends) - 0.15 * reach, max(ends) + 0.15 * reach)
        _label(axes, rows, style)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(unit)
        axes.grid(axis="y", visible=False)

    return draw


def _label(axes: Axes, rows: Sequence[_Row], style: Style) -> None:
    """Write each estimate above its bar, in the middle of it unless it would be cut off there."""
    low, high = axes.get_xlim()
    width = axes.get_position().width * style.width
    for at, row in enumerate(rows):
        found = row.figure
        if found is None or found.low == found.high:
            continue
        words = f"{found.value:+,.0f}  ({found.low:+,.0f} to {found.high:+,.0f})".replace("-", "−")
        half = LETTER * len(words) / 2 / width
        place = min(max((found.value - low) / (high - low), half), 1.0 - half)
        axes.annotate(
            words, (place, at), xycoords=("axes fraction", "data"), xytext=(0, 6), textcoords="offset points",
            ha="center", va="bottom", color=style.theme.ink, fontweight="bold" if row.bold else "normal",
        )  # fmt: skip


def _name_rows(axes: Axes, rows: Sequence[_Row], style: Style) -> None:
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(style.theme.ink)
        label.set_fontweight("bold" if row.bold else "normal")
    axes.set_ylim(len(rows) - 0.5, -0.75)


def _draw_rests(axes: Axes, style: Style, model: advice.Model) -> None:
    """Draw how many decisions of each action there are, were seen to the end, and are worth."""
    theme = style.theme
    for at, one in enumerate(model.weights):
        for count, colour, alpha in (
            (one.decisions, theme.line, 0.25), (one.complete, theme.line, 0.5), (one.effective, theme.line, 1.0)
        ):  # fmt: skip
            axes.barh(at, count, height=BAR, color=colour, alpha=alpha, linewidth=0)
        words = f"{one.decisions:,} decided, {one.complete:,} seen, worth {one.effective:,.0f}"
        axes.annotate(words, (0, at - BAR / 2), xytext=(0, 1), textcoords="offset points", va="bottom", color=theme.ink)
    _name_rows(axes, [_Row(one.action, None) for one in model.weights], style)
    axes.set_xlim(0, 1.05 * max(1, *(one.decisions for one in model.weights)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("decisions")
    axes.grid(axis="y", visible=False)


def _draw_overlap(axes: Axes, style: Style, model: advice.Model) -> None:
    """Draw decisions taken and left, by the gain that is expected of taking."""
    theme, bins = style.theme, model.overlap
    edges = [bins[0].low, *(one.high for one in bins)]
    filled: dict[str, Any] = {"align": "edge", "linewidth": 0}
    widths = [0.92 * (one.high - one.low) for one in bins]
    axes.bar(edges[:-1], [one.taken for one in bins], widths, color=theme.line, **filled)
    axes.bar(edges[:-1], [-one.left for one in bins], widths, color=palette.ORANGE, **filled)
    axes.axhline(0.0, color=theme.muted, linewidth=1.0)
    top = max(1, *(one.taken for one in bins))
    bottom = max(1, *(one.left for one in bins))
    if model.target_decisions:
        scale = top / max(one.there for one in bins)
        heights = [one.there * scale for one in bins]
        axes.stairs(heights, edges, color=theme.ink, linewidth=1.4, linestyle=(0, (4, 2.5)), baseline=None)
    axes.set_ylim(-1.12 * bottom, 1.12 * top)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
    for at, word, colour in ((1.0, "taken", theme.line), (0.0, "left", palette.ORANGE)):
        axes.annotate(
            word, (1.0, at), xycoords="axes fraction", xytext=(-2, -4 if at else 4), textcoords="offset points",
            ha="right", va="top" if at else "bottom", color=colour, fontweight="bold",
        )  # fmt: skip
    axes.set_ylabel("decisions")
    axes.set_xlabel("expected gain of taking, seconds")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", visible=False)
