"""What all figures are drawn on: their size and greys, and where panels and headings lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from liver_slurm.report.palette import Theme

DOTS = 100
"""Units of an SVG, and dots of a picture, in an inch of matplotlib's."""


@dataclass(frozen=True)
class Style:
    """How large a figure is and what its greys are."""

    width: int
    """Units across; the page shows one unit as one pixel where there is room."""
    theme: Theme

    @property
    def narrow(self) -> bool:
        """Whether it is for a telephone."""
        return self.width < 600


def settings(style: Style) -> dict[str, Any]:
    """Return matplotlib's settings for a figure."""
    theme = style.theme
    return {
        "text.parse_math": False,  # names and reasons are others', and a dollar in them is a dollar
        "font.size": 8.3,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.muted,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 8.6,
        "axes.titlelocation": "left",
        "axes.titlecolor": theme.ink,
        "axes.titleweight": "bold",
        "grid.color": theme.grid,
        "grid.linewidth": 0.6,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
    }


def add_heading(
    figure: Figure, style: Style, words: tuple[str, str], *, left: int, at: tuple[int, int], size: float
) -> None:
    """Give a figure that stands alone its ground, and a headline with a line below it.

    Args:
        figure: to draw on.
        style: its size and greys.
        words: of the headline, and of the line below.
        left: units between them and the figure's edges.
        at: units of each from the top.
        size: of the headline's font.
    """
    height, edge, theme = figure.get_figheight() * figure.dpi, left / style.width, style.theme
    figure.patch.set_visible(True)
    figure.patch.set_facecolor(theme.paper)
    head = figure.text(edge, 1 - at[0] / height, words[0], fontsize=size, fontweight="bold", color=theme.ink)
    below = figure.text(edge, 1 - at[1] / height, words[1], color=theme.muted)
    fit_in(figure, (head, below), 1 - 2 * edge)


def fit_in(figure: Figure, lines: Sequence[Text], room: float) -> None:
    """Make lines smaller that are longer than a share of the figure's width: they would be cut off at its edge."""
    FigureCanvasAgg(figure)  # which measures them
    for line in lines:
        width = line.get_window_extent().width
        if width > room * figure.bbox.width:
            line.set_fontsize(float(line.get_fontsize()) * room * figure.bbox.width / width)


def new_figure(style: Style, height: int) -> Figure:
    """Return an empty figure without a ground, so many units high."""
    figure = Figure(figsize=(style.width / DOTS, height / DOTS), dpi=DOTS)
    figure.patch.set_visible(False)
    return figure


def box(
    style: Style, height: int, *, left: int, right: int, top: int, bottom: int
) -> tuple[float, float, float, float]:
    """Return the place of a panel that is so many units away from the figure's edges."""
    return (
        left / style.width,
        bottom / height,
        (style.width - left - right) / style.width,
        (height - top - bottom) / height,
    )
