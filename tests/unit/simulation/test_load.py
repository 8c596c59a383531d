"""Generated loads have the statistics that were stated."""

from __future__ import annotations

import statistics
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.base.errors import BadInput
from liver_slurm.simulation.load import DAY, Load, draw, generate, parse_load

WEEK = 7 * DAY


def test_jobs_ask_for_what_was_stated() -> None:
    load = Load(nodes=256, utilization=0.7)
    jobs = draw(load, WEEK, Random(1))
    asked = sum(job.nodes * job.runtime for job in jobs) / (256 * WEEK)
    assert asked == pytest.approx(0.7, abs=0.02)
    runtimes = sorted(job.runtime for job in jobs)
    assert statistics.median(runtimes) == pytest.approx(135.0, rel=0.1)
    assert runtimes[int(0.99 * len(runtimes))] == pytest.approx(7 * 3600.0, rel=0.2)
    assert max(runtimes) <= load.longest
    assert all(job.runtime <= job.limit <= load.longest for job in jobs)


def test_sizes_are_powers_of_two_with_equal_shares_of_jobs_times_nodes() -> None:
    jobs = draw(Load(nodes=64), WEEK, Random(2))
    count = {size: sum(job.nodes == size for job in jobs) for size in (1, 2, 4, 8, 16)}
    assert sum(count.values()) == len(jobs)
    for size, number in count.items():
        assert number * size == pytest.approx(count[1], rel=0.3)
    assert {job.nodes for job in draw(Load(nodes=64, largest=1), DAY, Random(2))} == {1}


@pytest.mark.parametrize("cv", [0.0, 1.0, 3.0])
def test_gaps_vary_as_stated(cv: float) -> None:
    jobs = draw(Load(nodes=256, cv=cv, daily=0.0), WEEK, Random(3))
    gaps = [later.submitted - one.submitted for one, later in pairwise(jobs)]
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.15, abs=0.01)


def test_more_is_submitted_by_day() -> None:
    """With a cycle of 0.5 around 14:00, the twelve hours around it have 1/2 + 0.5/π of all jobs."""
    jobs = draw(Load(nodes=256, cv=1.0), WEEK, Random(4))
    by_day = sum(8 * 3600 <= job.submitted % DAY < 20 * 3600 for job in jobs) / len(jobs)
    assert by_day == pytest.approx(0.5 + 0.5 / 3.14159, abs=0.02)


def test_what_is_left_idle() -> None:
    trace = generate(Load(nodes=64, days=3.0), Random(5))
    assert trace.seconds == 3 * DAY
    assert 0.05 < trace.node_seconds / (64 * trace.seconds) < 0.4
    assert trace.most <= 64
    assert "jobs that ask for" in trace.note
    assert trace == generate(Load(nodes=64, days=3.0), Random(5))
    assert trace != generate(Load(nodes=64, days=3.0), Random(6))


@settings(deadline=None, max_examples=30)
@given(
    st.builds(
        Load,
        nodes=st.integers(1, 20),
        days=st.floats(0.02, 0.5),
        utilization=st.floats(0.05, 1.0),
        median=st.floats(60.0, 7200.0),
        longest=st.floats(7200.0, 90000.0),
        sizes=st.floats(0.0, 2.0),
        cv=st.floats(0.0, 12.0),
        daily=st.floats(0.0, 1.0),
        limits=st.floats(1.0, 5.0),
        largest=st.just(0),
    ),
    st.integers(0, 9),
)
def test_spans_of_a_node_do_not_overlap(load: Load, seed: int) -> None:
    free: dict[str, float] = {}
    for span in generate(load, Random(seed)).spans:
        assert free.get(span.node, 0.0) <= span.begin < span.end
        free[span.node] = span.end


def test_what_is_left_out_is_as_documented() -> None:
    assert parse_load("nodes=8") == Load(nodes=8)
    assert parse_load(" nodes=8, utilization=0.9 ,") == Load(nodes=8, utilization=0.9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nodes is missing"),
        ("nodes=8.5", "nodes is '8.5'"),
        ("nodes=0", "nodes is 0"),
        ("nodes=8,utilization=80", "utilization is 80"),
        ("nodes=8,days=inf", "no finite number"),
        ("nodes=8,p99=10", "p99 is 10"),
        ("nodes=8,largest=9", "largest is 9"),
        ("nodes=8,limits=0.5", "limits is 0.5"),
        ("nodes=8,daily=2", "daily is 2"),
        ("nodes", "'nodes': write KEY=VALUE"),
    ],
)
def test_a_load_that_cannot_be(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_load(text)
