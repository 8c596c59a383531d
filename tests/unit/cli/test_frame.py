"""What ``top`` draws, on screens of any size: golden files, and what holds for all of them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from top_samples import NOW, ended, training

from liver_slurm.cli.frame import ASCII, UNICODE, Glyphs, frame, glyphs_for, ranges, sparkline
from liver_slurm.observability.history import Happening
from liver_slurm.observability.top_view import Contact, NodeRow, TopView

MOMENTS = {"training": training, "ended": ended}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def drawn(view: TopView, width: int = 80, height: int = 30, glyphs: Glyphs = UNICODE) -> str:
    return "\n".join(line.plain.rstrip() for line in frame(view, width, height, glyphs)) + "\n"


def changed(**changes: Any) -> TopView:
    return dataclasses.replace(training(), **changes)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_screen(golden: Callable[[str, str], None], moment: str, width: int) -> None:
    golden(f"top-{moment}-{width}.txt", drawn(MOMENTS[moment](), width))


def test_a_screen_without_unicode(golden: Callable[[str, str], None]) -> None:
    text = drawn(training(), glyphs=ASCII)
    assert text.isascii()
    golden("top-ascii-80.txt", text)


def test_a_terminal_gets_what_its_encoding_has() -> None:
    assert glyphs_for("utf-8") is UNICODE
    assert glyphs_for("ascii") is glyphs_for("iso-8859-1") is glyphs_for("no-such-encoding") is ASCII


@given(st.integers(1, 250), st.integers(1, 80), st.integers(0, 100), st.integers(0, 50), st.booleans())
def test_a_screen_of_any_size_is_never_exceeded(width: int, height: int, nodes: int, changes: int, over: bool) -> None:
    rows = tuple(NodeRow(f"node-{number}", "scavenger", (number,), 1, False) for number in range(nodes))
    turns = tuple(Happening(NOW, "tp1pp1dp1 → tp1pp1dp2", "因" * 90, 3) for _ in range(changes))
    view = dataclasses.replace(ended() if over else training(), nodes=rows, happenings=turns)
    for glyphs in (UNICODE, ASCII):
        lines = frame(view, width, height, glyphs)
        assert len(lines) <= height
        assert max(line.cell_len for line in lines) <= max(width, 20)


def test_nodes_that_do_not_fit_are_summed_up() -> None:
    rows = tuple(
        NodeRow(f"n{number}", "live" if number < 8 else "scavenger", (number,), 0, False) for number in range(64)
    )
    text = drawn(changed(nodes=rows, notices=(), happenings=()), height=24)
    assert "nodes (64: 64 workers)" in text
    assert text.splitlines()[-1] == "  … 50 further nodes of scavenger"
    assert len(text.splitlines()) == 24


def test_a_coordinator_that_is_away_says_since_when() -> None:
    away = Contact(since=NOW - 45.0, answered=True, error="no answer")
    assert "coordin.  away since 07:59:15, 0:45; without it workers end in 9:15" in drawn(
        changed(contact=away, orphan_s=555.0)
    )
    never = Contact(since=NOW - 3.0, error="no answer")
    assert "coordin.  no answer since 07:59:57, 0:03" in drawn(changed(contact=never))
    assert "coordin." not in drawn(dataclasses.replace(ended(), contact=away))


def test_a_notice_counts_down_and_is_then_overdue() -> None:
    first = training().notices[0]
    assert " 0:41 left " in drawn(training())
    assert " overdue " in drawn(changed(notices=(dataclasses.replace(first, deadline=NOW - 1.0),)))


def test_steps_that_do_not_come_are_noticed() -> None:
    assert "no step for 1:05" in drawn(changed(overdue_s=65.0))


def test_a_run_that_waits_says_why() -> None:
    status = msgspec.structs.replace(
        training().status, state="pending", step=0, layout=None, reason="job 4711 waits in the queue: Resources"
    )
    text = drawn(changed(status=status, preparing=None, nodes=(), notices=(), happenings=(), losses=()))
    assert "world     none yet" in text
    assert "reason    job 4711 waits in the queue: Resources" in text


def test_a_validation_is_told() -> None:
    last = {
        "step": 1200, "loss": 2.5, "perplexity": 12.2, "tokens": 9, "samples": 3, "best_step": 1000, "best_loss": 2.4,
        "since_best": 1, "seconds": 0.1, "generation": 7, "layout": "tp2pp1dp4", "end": 1.0,
    }  # fmt: skip
    status = msgspec.structs.replace(training().status, validation=last, validating=(16, 65.0))
    text = drawn(changed(status=status), width=120)
    assert "validated loss 2.5000 after step 1200, the best is 2.4000 at 1000; validating after step 1234: 16" in text


def test_sparklines() -> None:
    assert sparkline([0.0, 1.0, 2.0, 3.0], 4, "0123") == "0123"
    assert sparkline([0.0, 2.0, 3.0, 3.0], 2, "0123") == "03"
    assert sparkline([1.0, 1.0], 2, "0123") == "00"
    assert sparkline([math.nan, 1.0, math.inf, 2.0], 4, "0123") == " 0 3"
    assert sparkline([math.nan], 1, "0123") == " "


def test_ranks_are_written_in_short() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert ranges([]) == ""
