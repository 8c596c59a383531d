"""What `run` and `submit --wait` show: one line on a terminal, plain lines elsewhere, all on stderr."""

from __future__ import annotations

import os
import sys

import pytest
from terminal import Terminal

from liver_slurm.cli import progress
from liver_slurm.cli.progress import ProgressView, change_line, progress_line, progress_rows
from liver_slurm.observability.history import Happening
from liver_slurm.observability.run_view import RunFiles
from liver_slurm.observability.throughput import Pace
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import ReconfigurationAborted, RunEnded
from liver_slurm.rundir.paths import RunDir

SHOW = """\
import sys, time
from pathlib import Path
from liver_slurm.cli.progress import ProgressView
from liver_slurm.rundir.paths import RunDir
run_dir = RunDir(Path(sys.argv[1]))
with ProgressView(run_dir, "mine"):
    while "run_ended" not in run_dir.events.read_text():
        time.sleep(0.01)
print("after")
"""


def write(run_dir: RunDir, *events: ReconfigurationAborted | RunEnded) -> None:
    log = EventLog(run_dir.events)
    for event in events:
        log.append(event)
    log.close()


ABORTED = ReconfigurationAborted(source="tp1pp1dp3", to="tp1pp1dp2", reason="a standby was lost")
ENDED = RunEnded(generation=1, outcome="finished", reason="all steps are trained", step=200)


def test_a_line_says_how_far_and_how_long(run_dir: RunDir) -> None:
    files = RunFiles(run_dir)
    files.refresh()
    assert progress_line(files.status(), Pace(0.5, 94.0)) == (
        "training, step 12 of 200, 1:34 left at 2.00 steps/s, loss 5.3800, tp1pp1dp3"
    )
    assert "4.00 s a step" in progress_line(files.status(), Pace(4.0, 752.0))
    write(run_dir, ENDED)
    files.refresh()
    text = "finished, step 200 of 200, loss 5.3800, tp1pp1dp3"  # why is said once, by who has waited for the end
    assert progress_line(files.status(), Pace(0.5, 0.0)) == text


def test_a_change_is_a_line() -> None:
    grown = Happening(0.0, "tp1pp1dp2 → tp1pp1dp3", "a standby is warm", 10, 0.25)
    assert change_line(grown)[8:] == " tp1pp1dp2 → tp1pp1dp3 at step 10, training waited 250 ms: a standby is warm"
    assert change_line(Happening(0.0, "interrupted"))[8:] == " interrupted"


def test_without_a_terminal_lines_come_when_there_is_news(run_dir: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    view = ProgressView(run_dir, "mine")
    view._show()
    view._show()
    write(run_dir, ABORTED)
    view._show()
    out, err = capfd.readouterr()
    grown, first, aborted = err.splitlines()
    assert out == ""
    assert "tp1pp1dp2 → tp1pp1dp3 at step 10" in grown
    assert first.startswith("training, step 12 of 200, ")
    assert aborted.endswith("tp1pp1dp3 → tp1pp1dp2: aborted: a standby was lost")


def test_the_end_and_its_reason_are_left_to_who_waited(run_dir: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    view = ProgressView(run_dir, "mine")
    write(run_dir, RunEnded(generation=1, outcome="failed", reason="no module 'nope'", step=12))
    view._show()
    _, err = capfd.readouterr()
    assert "nope" not in err
    assert "failed, step 12 of 200" in err


def test_a_run_that_has_no_layout_has_no_generation(run_dir: RunDir) -> None:
    files = RunFiles(run_dir)
    assert ("layout", "-") in progress_rows(files.status())
    files.refresh()
    assert ("layout", "tp1pp1dp3 (generation 1)") in progress_rows(files.status())


def test_without_a_terminal_a_line_comes_after_a_while_without_news(
    run_dir: RunDir, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    view = ProgressView(run_dir, "mine")
    view._show()
    monkeypatch.setattr(progress, "QUIET", 0.0)
    view._show()
    assert capfd.readouterr().err.count("training, step 12 of 200") == 2


def test_the_last_state_is_said(run_dir: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    with ProgressView(run_dir, "mine"):
        write(run_dir, ENDED)
    assert capfd.readouterr().err.splitlines()[-1].startswith("finished, step 200 of 200, loss 5.3800, tp1pp1dp3")


def shown(run_dir: RunDir, columns: int, term: str) -> Terminal:
    command = [sys.executable, "-c", SHOW, str(run_dir.path)]
    return Terminal(command, {**os.environ, "TERM": term, "PYTHONUTF8": "1"}, columns)


def test_on_a_terminal_it_is_one_line_that_changes(run_dir: RunDir) -> None:
    with shown(run_dir, 60, "xterm") as terminal:
        text = terminal.until(lambda text: "mine: training, step 12 of 200" in text)
        assert len(text.splitlines()[-1]) <= 59
        write(run_dir, ABORTED)
        terminal.until(lambda text: "aborted: a standby" in text and text.splitlines()[-1].startswith("mine: training"))
        assert terminal.text.count("mine:") == 1
        write(run_dir, ENDED)
        assert terminal.wait() == 0
        assert "mine:" not in terminal.text
        assert terminal.text.endswith("after")


def test_on_a_dumb_terminal_nothing_is_replaced(run_dir: RunDir) -> None:
    with shown(run_dir, 80, "dumb") as terminal:
        terminal.until(lambda text: "training, step 12 of 200" in text)
        write(run_dir, ENDED)
        assert terminal.wait() == 0
        assert b"\x1b" not in terminal.output
