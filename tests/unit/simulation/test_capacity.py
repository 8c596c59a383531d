"""What a trace's nodes are worth to any way to train."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from simulation_lab import COSTS, LAYOUTS, elastic_job, setting, trace

from liver_slurm.parallel.layout import Layout
from liver_slurm.simulation.capacity import capacity
from liver_slurm.simulation.costs import StepTimes
from liver_slurm.simulation.setting import Setting, parse_queue_wait
from liver_slurm.simulation.trace import Span, Trace, from_spans


def heard(
    made: Trace, notice: float = 60.0, max_jobs: int = 3, ready_s: float = COSTS.join_s
) -> list[tuple[float, str, str]]:
    here = setting(made, notice, queue_wait=parse_queue_wait("8"))
    config = elastic_job(poll=4.0, max_jobs=max_jobs)
    news = capacity(here, config, COSTS).news(ready_s)
    return [(one.time, one.kind, one.node.split()[0]) for one in news]


def test_a_node_is_ready_after_half_a_look_the_queue_and_a_start() -> None:
    made = trace(1000.0, ("a", 100.0, 600.0), ("b", 500.0, 1000.0))
    assert heard(made) == [
        (130.0, "ready", "a"), (530.0, "ready", "b"), (540.0, "notice", "a"), (600.0, "gone", "a"),
    ]  # fmt: skip
    assert heard(made, ready_s=COSTS.join_s + 10.0)[0] == (140.0, "ready", "a")
    assert heard(made, notice=0.0)[2:] == [(600.0, "gone", "a")]


def test_a_node_that_goes_too_soon_is_never_heard_of() -> None:
    assert heard(trace(1000.0, ("a", 100.0, 185.0))) == []


def test_another_node_is_taken_when_one_goes() -> None:
    made = trace(1000.0, ("a", 0.0, 500.0), ("b", 100.0, 900.0))
    assert heard(made, max_jobs=1) == [
        (30.0, "ready", "a"), (440.0, "notice", "a"), (470.0, "ready", "b"), (500.0, "gone", "a"),
        (840.0, "notice", "b"), (900.0, "gone", "b"),
    ]  # fmt: skip


def test_a_sudden_death_has_no_notice() -> None:
    made = Trace("t", 1000.0, (Span("a", 100.0, 600.0, sudden=True),))
    assert heard(made)[1:] == [(600.0, "gone", "a")]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 900), st.integers(1, 500)), max_size=20), st.integers(1, 4))
def test_a_run_never_has_more_nodes_than_it_may(spans: list[tuple[int, int, int]], most: int) -> None:
    made = from_spans("t", 1000.0, [Span(f"n{number}", begin, begin + length) for number, begin, length in spans])
    there: set[str] = set()
    for time, kind, node in heard(made, max_jobs=most):
        assert 0.0 <= time <= 1000.0
        if kind == "ready":
            there.add(node)
        else:
            there.discard(node)
        assert len(there) <= most


def test_the_fastest_layout_of_equal_ones_the_smallest() -> None:
    config = elastic_job()
    found = capacity(Setting(trace(9.0, ("a", 0, 9))), config, COSTS)
    assert [str(found.speeds.best(workers)) for workers in (1, 2, 5, 8)] == ["None", LAYOUTS[0], LAYOUTS[1], LAYOUTS[3]]
    equal = replace(COSTS, step_s={**COSTS.step_s, "tp1pp1dp8": COSTS.step_s["tp1pp1dp6"]})
    assert StepTimes(config, equal.step_s)(Layout.parse("tp1pp1dp8")) == COSTS.step_s["tp1pp1dp6"]
    assert str(capacity(Setting(trace(9.0, ("a", 0, 9))), config, equal).speeds.best(8)) == LAYOUTS[1]
    assert [found.workers(nodes) for nodes in (0, 1, 3, 9)] == [2, 4, 8, 8]
