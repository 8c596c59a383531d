"""From a figure of matplotlib to SVG inside a page: colours that follow the page, its font, and words to hover over."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from liver_slurm.report.palette import with_variables

SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "liver-slurm"}
"""Text stays text, so that it can be searched and read aloud; and the same run gives the same file."""
_FAMILY = re.compile(r"(font: [^;\"]*?px|font-family:) [^;\"]*")


def to_svg(figure: Figure, prefix: str, title: str, hover: Mapping[str, str]) -> str:
    """Return a figure as an ``<svg>`` element.

    Args:
        figure: drawn with the stand-ins of the palette.
        prefix: begins all ids, so that several figures can be in one page.
        title: what the figure shows, for those who do not see it.
        hover: id of a group → what is said when one points at it.
    """
    FigureCanvasSVG(figure)
    stream = io.StringIO()
    with mpl.rc_context(SETTINGS):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(
        r'<g id="([^"]*)">',
        lambda found: f"{found[0]}<title>{escape(hover[found[1]])}</title>" if found[1] in hover else found[0],
        text,
    )
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = _FAMILY.sub(r"\1 system-ui, sans-serif", text)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" ', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*" ', r"<svg \1", text, count=1)
    head = f'<svg role="img" aria-label="{escape(title, quote=True)}" '
    return with_variables(text.replace("<svg ", head, 1))
