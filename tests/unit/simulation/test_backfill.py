"""The queue of a generated load."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.simulation.backfill import Request, serve

JOBS = st.lists(
    st.tuples(st.floats(0.0, 500.0), st.integers(1, 8), st.floats(1.0, 300.0), st.floats(1.0, 3.0)), max_size=30
)


def starts(*jobs: tuple[float, int, float, float], nodes: int = 4) -> dict[int, float]:
    """When each job starts, by its place, of (submitted, nodes, runtime, limit)."""
    requests = [Request(*job) for job in jobs]
    return {requests.index(one.request): one.start for one in serve(requests, nodes, 10_000.0)}


def test_a_short_job_passes_one_that_waits() -> None:
    assert starts((0, 3, 100, 100), (1, 4, 50, 50), (2, 1, 90, 98)) == {0: 0.0, 1: 100.0, 2: 2.0}


def test_a_long_one_waits_behind_it() -> None:
    assert starts((0, 3, 100, 100), (1, 4, 50, 50), (2, 1, 90, 200)) == {0: 0.0, 1: 100.0, 2: 150.0}


def test_a_long_one_may_have_what_is_left_over() -> None:
    assert starts((0, 2, 100, 100), (1, 3, 50, 50), (2, 1, 900, 900), (3, 1, 900, 900)) == {
        0: 0.0, 1: 100.0, 2: 2.0, 3: 150.0,
    }  # fmt: skip


def test_a_job_that_ends_early_lets_the_next_one_start() -> None:
    assert starts((0, 4, 10, 100), (1, 4, 5, 5)) == {0: 0.0, 1: 10.0}


@given(JOBS)
def test_no_node_has_two_jobs_and_the_first_is_never_delayed(drawn: list[tuple[float, int, float, float]]) -> None:
    requests = [Request(at, nodes, runtime, runtime * more) for at, nodes, runtime, more in sorted(drawn)]
    served = serve(requests, 8, 1e9)
    assert len(served) == len(requests)
    free = [0.0] * 8
    for job in served:
        assert job.start >= job.request.submitted
        assert len(job.nodes) == job.request.nodes
        for node in job.nodes:
            assert free[node] <= job.start
            free[node] = job.start + job.request.runtime
