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
_TAG = re.compile(r"<[^>]*>")
_GROUP = re.compile(r'<g id="([^"]*)">')


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
    text = _TAG.sub(lambda found: _of_the_page(found[0], prefix), text)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" ', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*" ', r"<svg \1", text, count=1)
    head = f'<svg role="img" aria-label="{escape(title, quote=True)}" '
    text = text.replace("<svg ", head, 1)
    titles = {f"{prefix}-{name}": f"<title>{escape(words)}</title>" for name, words in hover.items()}
    return _GROUP.sub(lambda found: found[0] + titles.get(found[1], ""), text)


def _of_the_page(tag: str, prefix: str) -> str:
    """Give a tag ids of its own, the page's font and its colours; what stands between tags is others' text."""
    tag = re.sub(r'\bid="', f'id="{prefix}-', tag)
    tag = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", tag)
    return with_variables(_FAMILY.sub(r"\1 system-ui, sans-serif", tag))
