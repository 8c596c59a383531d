"""Whose CPU time is whose, and the benchmark's table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from liver_slurm.bench import overhead
from liver_slurm.bench.overhead import table
from liver_slurm.bench.threads import Thread, by_name, read_threads, share, spent


def thread(tid: int, name: str, seconds: float) -> Thread:
    return Thread(100, tid, name, seconds)


BEFORE = [thread(100, "python", 10.0), thread(101, "python", 1.0), thread(102, "gloo_tcp_loop", 1.0)]
AFTER = [
    thread(100, "python", 19.0),
    thread(101, "python", 1.02),
    thread(102, "gloo_tcp_loop", 1.9),
    thread(103, "ZMQbg/IO/0", 0.08),
]


def test_only_what_was_used_between_the_looks_counts() -> None:
    assert [round(one.seconds, 6) for one in spent(BEFORE, AFTER)] == [9.0, 0.02, 0.9, 0.08]


def test_what_is_not_known_to_be_trainings_is_ours() -> None:
    assert [one.ours for one in AFTER] == [False, True, False, True]
    assert share(spent(BEFORE, AFTER)) == pytest.approx(0.1 / 10.0)


def test_kinds_of_threads_add_up() -> None:
    used = by_name(spent(BEFORE, AFTER))
    assert used == pytest.approx({"training": 9.0, "python": 0.02, "gloo_tcp_loop": 0.9, "ZMQbg/IO/0": 0.08})


def test_threads_of_this_process_are_found() -> None:
    threads = read_threads([os.getpid()])
    (main,) = [one for one in threads if one.tid == os.getpid()]
    assert main.seconds > 0
    assert not main.ours


@pytest.mark.parametrize("detailed", [True, False])
def test_cpu_time_comes_from_the_finest_clock_that_there_is(detailed: bool, tmp_path: Path) -> None:
    folder = tmp_path / "7" / "task" / "9"
    folder.mkdir(parents=True)
    (folder / "comm").write_text("a name\n")
    ticks = os.sysconf("SC_CLK_TCK")
    (folder / "stat").write_text(f"9 (a ) name) S {' 0' * 10} {2 * ticks} {ticks} 0 0\n")
    if detailed:
        (folder / "schedstat").write_text("3500000000 12 3\n")
    assert read_threads([7], tmp_path) == [Thread(7, 9, "a name", 3.5 if detailed else 3.0)]


def test_the_table_has_both_figures() -> None:
    case = {
        "name": "15M tp1pp1dp1",
        "cpu_share": 0.00123,
        "cpu_of_wall": 0.0005,
        "step_time_ratio": 1.0042,
        "step_s": 0.1,
        "plain_step_s": 0.1,
    }
    text = table({"cases": [case], "machine": {"cores": 2, "device": "cpu"}, "seconds": 30.0})
    assert "0.12%" in text
    assert "0.050%" in text
    assert "1.004" in text


@pytest.mark.parametrize(
    ("cards", "sizes", "names"),
    [
        (0, [], ["15M tp1pp1dp1", "15M tp1pp1dp2"]),
        (1, [], ["1.3B tp1pp1dp1"]),
        (2, [], ["1.3B tp1pp1dp1", "1.3B tp1pp1dp2"]),
        (1, ["110M", "15M"], ["110M tp1pp1dp1", "15M tp1pp1dp1"]),
    ],
)
def test_the_model_suits_the_machine(
    cards: int, sizes: list[str], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overhead.machine, "count_gpus", lambda: cards)
    monkeypatch.setattr(
        overhead, "measure", lambda todo, *_: {"cases": [f"{size.name} {layout}" for size, layout in todo]}
    )
    assert overhead.run(False, sizes)["cases"] == names
    assert overhead.run(True, sizes)["cases"] == names[:1]
