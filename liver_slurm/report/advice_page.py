"""The page of an advisor's model: one HTML file with everything in it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from importlib import resources

from jinja2 import Environment
from markupsafe import Markup

from liver_slurm.advisor.model import Model
from liver_slurm.report import palette
from liver_slurm.report.advice_figures import headline, panels, panels_figure, subline
from liver_slurm.report.canvas import Style
from liver_slurm.report.page import NARROW, WIDE, Drawing
from liver_slurm.report.svg import to_svg


def render(model: Model, told: Iterable[str] = ()) -> str:
    """Return the page of a model; ``told``: what is to be said of it, line by line."""
    template = resources.files("liver_slurm.report").joinpath("advice.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        headline=headline(model),
        subline=subline(model),
        advises=model.advises,
        when=time.strftime("%Y-%m-%d %H:%M", time.localtime(model.written)) if model.written else "",
        drawing=_drawn(model) if panels(model) else None,
        told="\n".join(told),
        css=Markup(palette.css()),  # ours, no input
        colours=vars(palette),
    )


def _drawn(model: Model) -> Drawing:
    found = []
    for width in (WIDE, NARROW):
        figure = panels_figure(model, Style(width, palette.STAND_INS))
        title = "What policies are worth, how far was looked, and what it rests on"
        found.append(Markup(to_svg(figure, f"advice-{width}", title, {})))  # matplotlib escapes the texts in it
    return Drawing(*found)
