"""From files to the page: those of a long run, as the script of tests/support makes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ledger_stories import Story
from long_run import write_long_run
from report_stories import grown_and_shrunk, report

from liver_slurm.observability.ledger.document import make_ledger
from liver_slurm.report.canvas import Style
from liver_slurm.report.figures import picture
from liver_slurm.report.model import make_report, sentence
from liver_slurm.report.page import render
from liver_slurm.report.palette import LIGHT
from liver_slurm.report.write import read_report, write_png


def test_the_report_of_a_long_run(tmp_path: Path) -> None:
    found = read_report(write_long_run(tmp_path, 62_000))
    assert len(found.ledger.account.facts.steps) == 62_000
    assert "grew 62 times and shrank 62 times" in sentence(found)
    assert len(render(found)) < 600_000


def test_a_long_headline_stays_in_the_picture() -> None:
    drawn = picture(report(grown_and_shrunk(2)), Style(500, LIGHT))
    assert len(drawn.texts) == 3
    assert all(line.get_window_extent().x1 <= drawn.bbox.width for line in drawn.texts)


def test_the_picture_of_a_run_without_changes_is_drawn_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for run in (Story(), started()):
        write_png(make_report(make_ledger(run.facts())), tmp_path / "run.png")
    assert [str(warning.message) for warning in recwarn] == []


def started() -> Story:
    story = Story()
    story.start(1.0, 1.0, 1.0)
    story.train(5)
    story.end()
    return story
