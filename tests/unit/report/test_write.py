"""From files to the page: those of a long run, as the script of tests/support makes them."""

from __future__ import annotations

from pathlib import Path

from long_run import write_long_run
from report_stories import grown_and_shrunk, report

from liver_slurm.report.canvas import Style
from liver_slurm.report.figures import picture
from liver_slurm.report.model import sentence
from liver_slurm.report.page import render
from liver_slurm.report.palette import LIGHT
from liver_slurm.report.write import read_report


def test_the_report_of_a_long_run(tmp_path: Path) -> None:
    found = read_report(write_long_run(tmp_path, 62_000))
    assert len(found.ledger.account.facts.steps) == 62_000
    assert "grew 62 times and shrank 62 times" in sentence(found)
    assert len(render(found)) < 600_000


def test_a_long_headline_stays_in_the_picture() -> None:
    drawn = picture(report(grown_and_shrunk(2)), Style(500, LIGHT))
    assert len(drawn.texts) == 3
    assert all(line.get_window_extent().x1 <= drawn.bbox.width for line in drawn.texts)
