"""Figures as the report writes them."""

from __future__ import annotations

import pytest

from liver_slurm.report.words import count, duration, percent, times, unit_of


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"), (0.1042, "104 ms"), (0.9999, "1.0 s"), (3.46, "3.5 s"), (59.96, "1 min"), (210.3, "3 min 30 s"),
        (3600.0, "1 h"), (7500.0, "2 h 05 min"), (3 * 86400.0 + 7200, "3 d 2 h"),
        (3599.6, "1 h"), (3599.4, "59 min 59 s"), (172799.9, "2 d"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.8823, "88.2 %"), (0.99996, "99.996 %"), (1.0, "100.0 %"), (0.0, "0.0 %"), (0.0004, "0.04 %"),
        (0.999999, "99.9999 %"), (1e-6, "0.0001 %"), (1e-20, "1e-18 %"), (1 - 1e-15, "99.9999999999999 %"),
    ],
)  # fmt: skip
def test_ratios_close_to_all_or_nothing_are_not_rounded_away(ratio: float, text: str) -> None:
    assert percent(ratio) == text


def test_numbers_of_things() -> None:
    assert (count(1, "change"), count(1200, "change")) == ("1 change", "1,200 changes")
    assert [times(number) for number in (1, 2, 3)] == ["once", "twice", "3 times"]
    assert [unit_of(seconds)[0] for seconds in (60, 1800, 80_000, 1e6)] == ["seconds", "minutes", "hours", "days"]
