"""The report in a browser: it renders without an error, fits at both widths, and follows light and dark.

A page around it loads it in a frame of the wanted width, looks into it, and writes what it found into its own title.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_stories import grown_and_shrunk, often_changed, report

from liver_slurm.report.page import render

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium here: apt-get install chromium")

LOOK = """
const frame = document.getElementById("frame");
frame.onload = () => {
  const page = frame.contentDocument, shown = name => getComputedStyle(page.querySelector(name)).display !== "none";
  const visible = [...page.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width > 0);
  const letters = visible.flatMap(svg => [...svg.querySelectorAll("text")].map(text => text.getBoundingClientRect()));
  document.title = JSON.stringify({
    across: page.documentElement.scrollWidth, wide: shown("#world .wide"), narrow: shown("#world .narrow"),
    figures: visible.length, least: Math.min(...letters.map(box => box.height)),
    out: letters.filter(box => box.left < -1 || box.right > frame.clientWidth + 1).length,
    sentence: page.querySelector(".sentence").getBoundingClientRect().bottom,
    world: page.querySelector("#world").getBoundingClientRect().bottom,
    tiles: page.querySelector("#tiles").getBoundingClientRect().bottom,
    paper: getComputedStyle(page.body).backgroundColor, text: page.body.innerText,
    labels: visible[0].textContent, bad: page.querySelectorAll("parsererror").length,
  });
};
frame.src = "REPORT";
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    (path / "report.html").write_text(render(report(grown_and_shrunk(2), grown_and_shrunk(2))))
    (path / "many.html").write_text(render(report(often_changed(300))))
    return path


def look(folder: Path, width: int, dark: bool = False, report: str = "report.html") -> dict[str, Any]:
    """What a reader sees at a width."""
    page = folder / f"around-{width}-{dark}-{report}"
    style = f"width: {width}px; height: 900px; border: 0"
    page.write_text(
        f'<title></title><iframe id="frame" style="{style}"></iframe><script>{LOOK.replace("REPORT", report)}</script>'
    )
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            "--virtual-time-budget=60000", "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--window-size=1400,1000", "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None
    assert title[1], done.stdout[:2000]
    found: dict[str, Any] = json.loads(html.unescape(title[1]))
    return found


def test_on_a_screen_all_that_counts_is_on_the_first_one(folder: Path) -> None:
    found = look(folder, 1280)
    assert (found["wide"], found["narrow"], found["figures"], found["bad"]) == (True, False, 2, 0)
    assert found["across"] <= 1280
    assert found["out"] == 0
    assert found["least"] >= 9.0  # pixels
    assert found["tiles"] <= 720
    assert "The run grew twice and shrank twice" in found["text"]
    assert "ETTR with restarts" in found["text"]
    assert re.search(r"2→3 at 1 min 15 s, cost \d+ ms", found["labels"])
    assert "3→2" in found["labels"]


def test_on_a_telephone_nothing_is_cut_off(folder: Path) -> None:
    found = look(folder, 390)
    assert (found["wide"], found["narrow"], found["figures"]) == (False, True, 2)
    assert found["across"] <= 390
    assert found["out"] == 0
    assert found["least"] >= 9.0
    assert found["sentence"] < found["world"] <= 900


@pytest.mark.parametrize(("width", "parts"), [(1280, 8), (390, 3)])
def test_many_changes_are_summed_by_part_of_the_run(folder: Path, width: int, parts: int) -> None:
    found = look(folder, width, report="many.html")
    assert found["across"] <= width
    assert found["out"] == 0
    assert len(re.findall(r"cost [\d.]+ m?s", found["labels"])) == parts
    assert sum(int(number) for number in re.findall(r"[▲▼] (\d+)", found["labels"])) == 300


def test_the_dark_is_dark(folder: Path) -> None:
    assert look(folder, 1280)["paper"] == "rgb(255, 255, 255)"
    assert look(folder, 1280, dark=True)["paper"] == "rgb(20, 24, 28)"
