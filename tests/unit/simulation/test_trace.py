"""When which nodes are to be had."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.simulation.trace import Span, Trace, cut, from_counts, from_spans, with_deaths

COUNTS = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9)), min_size=1, max_size=30)


def made(counts: list[tuple[int, int]], seed: int = 0) -> tuple[Trace, list[tuple[float, int]]]:
    by_time = {float(time): count for time, count in sorted(counts)}
    steps = sorted(by_time.items())
    return from_counts("t", 120.0, steps, Random(seed)), steps


def offered(trace: Trace, time: float) -> int:
    return sum(span.begin <= time < span.end for span in trace.spans)


@given(COUNTS)
def test_a_trace_of_counts_has_these_counts(counts: list[tuple[int, int]]) -> None:
    trace, steps = made(counts)
    for (begin, count), (end, _) in zip(steps, [*steps[1:], (120.0, 0)], strict=True):
        if end > begin:
            assert offered(trace, (begin + end) / 2) == count
    assert trace.node_seconds == pytest.approx(
        sum(count * (end - begin) for (begin, count), (end, _) in zip(steps, [*steps[1:], (120.0, 0)], strict=True))
    )
    assert made(counts)[0] == trace, "the same lots are drawn again"


@given(COUNTS, st.integers(0, 130))
def test_a_cut_trace_has_the_beginning(counts: list[tuple[int, int]], seconds: int) -> None:
    trace, _ = made(counts)
    short = cut(trace, float(seconds))
    assert short.seconds == min(seconds, 120)
    for time in (0.5, seconds / 2, seconds - 0.5):
        if 0 <= time < short.seconds:
            assert offered(short, time) == offered(trace, time)


def test_spans_that_touch_are_one() -> None:
    trace = from_spans("t", 100.0, [Span("a", 0, 30), Span("a", 30, 60), Span("a", 70, 200), Span("b", 5, 5)])
    assert trace.spans == (Span("a", 0.0, 60.0), Span("a", 70.0, 100.0))
    assert (trace.events, trace.most) == (2, 1)


@given(st.integers(0, 1000))
def test_deaths_take_nodes_for_a_while(seed: int) -> None:
    trace = from_spans("t", 86400.0, [Span(f"n{number}", 0.0, 86400.0) for number in range(20)])
    struck = with_deaths(trace, 500.0, 3600.0, Random(seed))
    for node in {span.node for span in trace.spans}:
        mine = [span for span in struck.spans if span.node == node]
        for span, after in pairwise(mine):
            assert span.sudden
            assert after.begin == pytest.approx(span.end + 3600.0)
        assert mine[-1].sudden == (mine[-1].end < 86400.0)
    assert with_deaths(trace, 0.0, 3600.0, Random(seed)) is trace


def test_the_rate_of_deaths_is_as_stated() -> None:
    trace = from_spans("t", 86400.0, [Span(f"n{number}", 0.0, 86400.0) for number in range(2000)])
    deaths = sum(span.sudden for span in with_deaths(trace, 100.0, 0.0, Random(1)).spans)
    assert deaths == pytest.approx(200, abs=45), "2,000 node-days; three standard deviations"
