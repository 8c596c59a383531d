"""What others write into a run's files, such as a reason, is shown and does nothing to the terminal."""

from __future__ import annotations

import dataclasses

import pytest
from msgspec.structs import replace
from top_samples import training

from liver_slurm.cli.common import print_table, printable
from liver_slurm.cli.events import event_line
from liver_slurm.cli.frame import frame
from liver_slurm.cli.progress import Pace, change_line, progress_line
from liver_slurm.cli.status import _print as print_status
from liver_slurm.observability.history import Happening

HOSTILE = "\x1b]0;owned\x07\x1b[2Jnode\ndrained \x9b31m"


def test_events_are_one_line_each() -> None:
    line = event_line(
        {"time": 1e9, "event": "notice", "generation": None, "worker": "w", "reason": HOSTILE, "of": 1e300}
    )
    assert line.isprintable()
    assert "\\x1b[2Jnode\\ndrained" in line


def test_tables_status_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    status = replace(training().status, reason=HOSTILE, state="pending")
    print_table([["a", HOSTILE]], ("h", "reason"))
    print_status(status)
    found = capsys.readouterr().out
    assert all(line.isprintable() for line in found.split("\n"))
    assert found.count("drained") == 2
    assert progress_line(status, Pace(None, None)).isprintable()
    assert change_line(Happening(0.0, "lost", HOSTILE)).isprintable()


def test_a_screen_keeps_its_width() -> None:
    view = dataclasses.replace(training(), happenings=(Happening(0.0, HOSTILE, HOSTILE * 3),))
    lines = frame(view, 60, 30)
    assert all(line.plain.isprintable() and line.cell_len <= 60 for line in lines)


def test_other_texts_stay_as_they_are() -> None:
    assert printable("tp1 → tp2 ünï 名前") == "tp1 → tp2 ünï 名前"
