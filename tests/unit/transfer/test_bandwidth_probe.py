"""The rate that a probe comes to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.transfer.bandwidth_probe import rate

times = st.integers(0, 1000)


def test_nothing_comes_in() -> None:
    assert rate([], 10) == 0.0


def test_sources_that_are_ready_at_different_times_are_as_fast_as_each() -> None:
    assert rate([(0.0, 1.0), (100.0, 101.0), (50.0, 51.0)], 10) == 10.0


def test_sources_that_send_at_once_share_the_link() -> None:
    assert rate([(0.0, 3.0), (1.0, 2.0), (0.0, 3.0)], 10) == 10.0


@given(st.lists(st.tuples(times, st.integers(1, 50)), min_size=1), times)
def test_when_it_happens_does_not_matter(messages: list[tuple[int, int]], later: int) -> None:
    at = [(float(begin), float(begin + length)) for begin, length in messages]
    found = rate(at, 7)
    assert rate([(begin + later, end + later) for begin, end in reversed(at)], 7) == pytest.approx(found)
    seconds = [length for _, length in messages]
    assert 7 * len(at) / sum(seconds) <= found * (1 + 1e-9)
    assert found <= 7 * len(at) / max(seconds) * (1 + 1e-9)
