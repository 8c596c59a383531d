"""Paths beside their raw links: the ratio, what is skipped and why, and an end that dies."""

from __future__ import annotations

import os
from typing import Any

import pytest

from liver_slurm.base.errors import LiverError
from liver_slurm.bench import paths, raw_links
from liver_slurm.bench.paths import Effort, Path, measure, table
from liver_slurm.bench.raw_links import Link, why_not
from liver_slurm.bench.two_ends import TwoEnds, two_ends

MIB = 1 << 20
SMALL = Effort(bytes=4 * MIB, card_bytes=MIB, runs=1, sizes=(MIB, 2 * MIB))


def test_a_machine_without_cards_says_so_and_one_card_is_no_peer() -> None:
    assert why_not("memcpy", 0) == ""
    assert why_not("peer", 0) == "there is no CUDA card here"
    assert why_not("peer", 1) == "it needs 2 CUDA cards, and there is 1"
    assert why_not("device_to_host", 1) == ""
    assert why_not("peer_both_ways", 2) == ""


def test_each_link_of_the_host_has_a_rate() -> None:
    with two_ends(0) as ends:
        for name in ("memcpy", "memcpy_threads", "process_vm_readv", "stream"):
            for size in (MIB, 3 * MIB + 5):
                assert raw_links.LINKS[name].rate(ends, size, 3) > 0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A raw link of 8 GB/s, and the sizes and counts that were asked for."""
    asked: list[tuple[int, int]] = []

    def rate(_: TwoEnds, size: int, count: int) -> float:
        asked.append((size, count))
        return 8e9

    monkeypatch.setattr(paths, "LINKS", {"raw": Link(rate)})
    monkeypatch.setattr(paths.raw_links, "LINKS", {"raw": Link(rate), "card": Link(rate, cards=1)})
    return asked


def test_ours_stands_beside_the_raw_link(fake: list[tuple[int, int]]) -> None:
    ways = (Path("done", "raw", lambda ends, size, count: 6e9), Path("to do", "raw"), Path("card", "card"))
    done, done_too, to_do, _, skipped = cases = measure(SMALL, 0, ways)
    assert (done["gb_per_s"], done["raw_gb_per_s"], done["ratio"], done["bytes"]) == (6.0, 8.0, 0.75, MIB)
    assert done_too["bytes"] == 2 * MIB
    assert (to_do["gb_per_s"], to_do["raw_gb_per_s"], to_do["ratio"]) == (None, 8.0, None)
    assert skipped == {"name": "card", "raw": "card", "skipped": "there is no CUDA card here"}
    assert fake == [(MIB, 4), (2 * MIB, 2)] * 2
    text = table(cases)
    assert "75%" in text
    assert "there is no CUDA card here" in text


def test_a_path_that_fails_costs_the_others_nothing(fake: list[tuple[int, int]]) -> None:
    def dies(ends: TwoEnds, size: int, count: int) -> float:
        return float(ends.call(0, os._exit, 1))

    ways = (Path("dies", "raw", dies), Path("lives", "raw", lambda ends, size, count: float(ends.call(0, os.getpid))))
    died, *lived = measure(SMALL, 0, ways)
    assert "it failed: end 0 of the link has died" in died["skipped"]
    assert [case["bytes"] for case in lived] == [MIB, 2 * MIB]


def test_an_error_in_an_end_is_raised_here() -> None:
    with two_ends(0) as ends:
        with pytest.raises(LiverError, match="FileNotFoundError"):
            ends.call(1, os.listdir, "/nonexistent")
        assert ends.call(1, os.getpid) != ends.call(0, os.getpid), "the end goes on"


def test_each_end_sees_the_card_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(cards: int) -> list[Any]:
        with two_ends(cards) as ends:
            return [ends.call(end, os.getenv, "CUDA_VISIBLE_DEVICES", "all") for end in range(2)]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert seen(2) == ["0", "1"]
    assert seen(1) == ["0", "all"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert seen(3) == ["4", "6"]
