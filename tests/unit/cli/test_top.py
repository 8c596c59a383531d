"""``liver-slurm top`` on terminals of all kinds, without one, and what it says where there is nothing to watch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import COLOUR, Terminal

from liver_slurm.cli import top
from liver_slurm.config.load import load_job
from liver_slurm.rundir import address
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import Event, Notice, RunEnded
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run, record_run

Liver = Callable[..., tuple[int, str, str]]
TINY = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"


def happens(run_dir: RunDir, event: Event) -> None:
    log = EventLog(run_dir.events)
    log.append(event)
    log.close()


def ends(run_dir: RunDir) -> None:
    happens(run_dir, RunEnded(generation=1, outcome="finished", reason="all steps are trained", step=200))


def terminal(*arguments: str, columns: int = 80, **variables: str) -> Terminal:
    command = [sys.executable, "-m", "liver_slurm.cli.main", "top", *arguments]
    known = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return Terminal(command, {**kept, **known, **variables}, columns)


def test_a_run_is_watched_to_its_end(run_dir: RunDir) -> None:
    with terminal(str(run_dir.path), "--interval", "0.2") as shown:
        # a view comes in pieces: its last line is waited for
        change = "tp1pp1dp2 → tp1pp1dp3, step 10, waited 250 ms: a standby is warm"
        first = shown.until(lambda text: "1: tp1pp1dp3, 3 workers" in text and change in text)
        assert "step      12 of 200" in first
        assert "1,365 tokens/s · 266.7 TFLOP/s a GPU · MFU 0.267" in first
        assert max(map(len, first.splitlines())) <= 80
        happens(run_dir, Notice(worker="standby-1-0", host="n3", kind="preemption", deadline=time.time() + 3600.0))
        shown.until(lambda text: "n3" in text and "59:5" in text and "preemption (rank 2)" in text)
        shown.resize(120, 40)
        shown.until(lambda text: len(text.splitlines()[0]) == 120)
        ends(run_dir)
        assert shown.wait() == 0
        assert "· finished" in shown.text  # the last view stays
        assert COLOUR.search(shown.output)


def test_a_coordinator_that_is_away_is_said(run_dir: RunDir) -> None:
    with terminal(str(run_dir.path)) as shown:
        shown.until(lambda text: "coordin.  no answer since " in text)
        shown.press("q")
        assert shown.wait() == 0


def test_a_run_whose_processes_are_gone_is_lost(run_dir: RunDir) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    address.write(run_dir.address_file, address.Address(host="127.0.0.1", port=1, epoch=1, pid=gone.pid))
    for file in (run_dir.events, run_dir.metrics):
        os.utime(file, (1.0, 1.0))
    with terminal(str(run_dir.path)) as shown:
        shown.until(lambda text: "· lost " in text and "never said how it ended" in text)
        shown.press("q")
        assert shown.wait() == 0


def test_without_colour(run_dir: RunDir) -> None:
    with terminal(str(run_dir.path), NO_COLOR="1") as shown:
        shown.until(lambda text: "tp1pp1dp3" in text)
        shown.press("q")
        assert shown.wait() == 0
        assert not COLOUR.search(shown.output)


def test_a_dumb_terminal_gets_one_view_below_the_other(run_dir: RunDir) -> None:
    with terminal(str(run_dir.path), "--interval", "0.1", TERM="dumb", LC_ALL="C", PYTHONUTF8="0") as shown:
        shown.until(lambda text: text.count("world     1: tp1pp1dp3") >= 2)
        ends(run_dir)
        assert shown.wait() == 0
        assert b"\x1b" not in shown.output
        assert shown.output.isascii()
        assert b"| finished" in shown.output


def test_ctrl_c_leaves_the_terminal_as_it_was(run_dir: RunDir) -> None:
    with terminal(str(run_dir.path)) as shown:
        shown.until(lambda text: "tp1pp1dp3" in text)
        shown.press("\x03")
        assert shown.wait() == 130
        assert shown.output.rstrip().endswith(b"liver-slurm: interrupted")
        assert shown.output.rindex(b"\x1b[?25h") > shown.output.rindex(b"\x1b[?25l")  # the cursor is back
        assert b"\x1b[?1049l" in shown.output


def test_of_several_runs_the_user_chooses(run_dir: RunDir) -> None:
    other = create_run(load_job(TINY, ["job.name=other"]))
    record_run(other)
    with terminal() as shown:
        text = shown.until(lambda text: "Which one, 1 to 2" in text)
        assert "gpt-tiny" in text
        number = next(line.split()[0] for line in text.splitlines() if "gpt-tiny" in line)
        shown.press(f"7\n{number}\n")
        shown.until(lambda text: "1: tp1pp1dp3, 3 workers" in text)
        shown.press("q")
        assert shown.wait() == 0


def test_without_a_terminal_one_view_is_printed(liver: Liver, run_dir: RunDir) -> None:
    code, out, err = liver("top")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith(f"{run_dir.path.name} · plain processes · training")
    assert "\x1b" not in out
    assert liver("top", str(run_dir.path), "--once")[1].splitlines()[2] == out.splitlines()[2]


def test_a_run_that_was_only_prepared_is_no_run_that_goes_on(liver: Liver, run_dir: RunDir) -> None:
    prepared = create_run(load_job(TINY, ["job.name=other"]))
    record_run(prepared)
    prepared.batch_script.write_text("#!/bin/bash")
    code, out, err = liver("top")
    assert (code, err) == (0, "")
    assert out.startswith(run_dir.path.name)
    listed = {line.split()[1]: line.split()[2] for line in liver("list")[1].splitlines()[2:]}
    assert listed["other"] == "prepared"


def test_a_view_as_json(liver: Liver, run_dir: RunDir) -> None:
    code, out, _ = liver("top", run_dir.path.name, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["status"]["layout"] == "tp1pp1dp3"
    assert found["happenings"][0]["why"] == "a standby is warm"
    assert found["nodes"] == [{"host": "", "partition": "", "ranks": [0, 1, 2], "standbys": 0, "leaving": False}]


def test_what_cannot_be_watched_is_said_in_a_line(liver: Liver, run_dir: RunDir) -> None:
    record_run(create_run(load_job(TINY, ["job.name=other"])))
    code, out, err = liver("top")
    assert (code, out) == (2, "")
    assert err.startswith("liver-slurm: error: there are 2 runs; name one: ")
    assert liver("top", "nothing")[0] == 2
    assert (
        liver("top", "--interval", "0")[2] == "liver-slurm: error: --interval: 0 is not allowed; allowed: 0.1 to 3600\n"
    )


def test_there_is_no_run(liver: Liver, home: Path) -> None:
    code, _, err = liver("top")
    assert (code, err.count("\n")) == (2, 1)
    assert "there are no runs" in err


@pytest.mark.parametrize(("typed", "chosen"), [("\n", 1), ("2\n", 2), ("x\n0\n3\n1\n", 1), ("q\n", None), ("", None)])
def test_a_choice(monkeypatch: pytest.MonkeyPatch, typed: str, chosen: int | None) -> None:
    lines = iter(typed.splitlines())

    def answer(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    assert top._choice(2) == chosen
