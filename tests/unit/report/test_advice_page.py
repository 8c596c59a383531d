"""The advisor's page and picture: everything in it, nothing fetched, and nothing that a model does not know."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import msgspec
import pytest

from liver_slurm.advisor.model import Bin, Constant, Figure, Horizon, Model, Weight, Worth
from liver_slurm.report import palette
from liver_slurm.report.advice_figures import BETTER, UNSURE, WORSE, panels, picture
from liver_slurm.report.advice_page import render
from liver_slurm.report.canvas import Style
from liver_slurm.report.palette import DARK, LIGHT
from liver_slurm.report.write import write_advice_png


def estimate(value: float, half: float = 10.0) -> Figure:
    return Figure(value=value, low=value - half, high=value + half)


BARE = Model(
    features_version=1, columns=(), rule=Constant(take=True), advises=False, verdict="take always: too few data",
    window_s=1800.0, rule_class="linear", learned_by="plug-in", decisions=3, runs=1,
)  # fmt: skip
FULL: dict[str, Any] = {
    "advises": True,
    "verdict": "the learned rule is better than to take always <b>& so on</b>",
    "target_decisions": 40,
    "worth": (
        Worth(name="take always", taken=1.0, gain=Figure(value=0.0, low=0.0, high=0.0)),
        Worth(name="leave always", taken=0.0, gain=estimate(-283.0)),
        Worth(name="cost-aware", taken=0.6, gain=estimate(3.0)),
        Worth(name="the learned rule", taken=0.47, gain=estimate(95.0)),
    ),
    "horizons": (
        Horizon(window_s=300.0, seen=(10, 20), effect=estimate(-82.0)),
        Horizon(window_s=1800.0, seen=(9, 18), effect=estimate(283.0)),
        Horizon(window_s=7200.0, seen=(1, 2)),
    ),
    "weights": (
        Weight(action="leave", decisions=410, complete=400, effective=398.0, largest=0.01),
        Weight(action="take", decisions=619, complete=598, effective=142.0, largest=0.02),
    ),
    "overlap": (
        Bin(low=-10.0, high=0.0, left=3, taken=5, there=0.75),
        Bin(low=0.0, high=10.0, left=2, taken=0, there=0.25),
    ),
}


@pytest.fixture(scope="module")
def page() -> str:
    return render(msgspec.structs.replace(BARE, **FULL), ["the rule: <i>take</i>"])


def test_what_is_to_be_known_comes_in_order(page: str) -> None:
    order = ["Advice: follow the learned rule", "Gain over taking always", "Gain of taking, by how far", "In words"]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    for text in (
        "−283  (−293 to −273)",
        "+95  (+85 to +105)",
        "takes 47%",
        "within 30 min",
        "619 decided, 598 seen, worth 142",
        "up: taken, down: left; dashed: offers elsewhere",
    ):
        assert f">{text}<" in page.replace("&#160;", " "), text
    assert "within 2 h" not in page, "too few were seen"


def test_nothing_is_fetched_and_nothing_runs(page: str) -> None:
    addresses = set(re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page))
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not [text for text in ("<script", "@import", "<b>", "<i>take") if text in page]
    assert len(page) < 200_000


def test_both_widths_and_both_themes(page: str) -> None:
    figures = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert len(figures) == 2
    for figure in figures:
        ElementTree.fromstring(figure)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "prefers-color-scheme: dark" in page
    assert not [stand_in for stand_in in vars(palette.STAND_INS).values() if stand_in in page]


def test_colours_say_what_is_sure() -> None:
    drawn = picture(msgspec.structs.replace(BARE, **FULL), Style(1160, LIGHT))
    lines = {tuple(line.get_xdata()): line.get_color() for line in drawn.axes[0].lines}
    assert [lines[ends] for ends in ((-293.0, -273.0), (-7.0, 13.0), (85.0, 105.0))] == [WORSE, UNSURE, BETTER]


@pytest.mark.parametrize("width", [1160, 372])
def test_all_words_are_inside(width: int) -> None:
    drawn = picture(msgspec.structs.replace(BARE, **FULL), Style(width, DARK))
    for text in (*drawn.texts, *(text for axes in drawn.axes for text in axes.texts)):
        box = text.get_window_extent()
        assert box.x0 >= 0.0, text.get_text()
        assert box.x1 <= drawn.bbox.width, text.get_text()
    assert len(drawn.axes) == 4


def test_a_model_that_knows_nothing_has_a_page_and_a_picture(tmp_path: Path) -> None:
    assert panels(BARE) == []
    assert "No advice: take whatever is on offer, as greedy does" in render(BARE)
    write_advice_png(BARE, tmp_path / "bare.png")
    assert (tmp_path / "bare.png").read_bytes().startswith(b"\x89PNG")
