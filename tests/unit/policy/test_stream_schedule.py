"""When state begins to leave before a cutover: a pure choice from the wire, the step, and who will be gone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.policy.stream_schedule import MOST_STEPS, RESERVE, schedule, wire_seconds
from liver_slurm.protocol.messages import Prepared

seconds = st.floats(0.001, 100.0)


def vote(name: str, state_bytes: int, rate: float) -> Prepared:
    return Prepared(worker=name, generation=1, ok=True, state_bytes=state_bytes, rate=rate)


def test_the_worker_that_waits_longest_decides() -> None:
    assert wire_seconds([vote("a", 100, 50.0), vote("b", 100, 10.0), vote("c", 0, 0.0)]) == 10.0
    assert wire_seconds([vote("a", 0, 0.0)]) == 0.0


def test_a_quick_wire_needs_one_step() -> None:
    chosen = schedule(wire_s=0.1, step_s=1.0, left_s=math.inf, steps_left=100)
    assert chosen.steps == 1
    assert chosen.exposed_s == pytest.approx(0.1 / 3)
    assert "0.1 s on the wire" in chosen.reason


def test_a_slow_wire_takes_more_steps_as_long_as_they_help() -> None:
    assert schedule(wire_s=2.0, step_s=1.0, left_s=math.inf, steps_left=100).steps > 1
    # Gradients alone would take longer than a step: more steps bring nothing, and the pause takes the rest.
    hopeless = schedule(wire_s=100.0, step_s=1.0, left_s=math.inf, steps_left=100)
    assert hopeless.exposed_s == pytest.approx(100.0, rel=0.05)


def test_a_deadline_wins() -> None:
    late = schedule(wire_s=0.5, step_s=10.0, left_s=15.0, steps_left=100)
    assert late.steps == 0
    assert "gone in 15 s" in late.reason
    assert schedule(wire_s=0.5, step_s=10.0, left_s=40.0, steps_left=100).steps == 1


def test_nothing_to_move_and_no_step_left() -> None:
    assert schedule(wire_s=0.0, step_s=1.0, left_s=math.inf, steps_left=5).steps == 0
    assert "no step is left" in schedule(wire_s=1.0, step_s=1.0, left_s=math.inf, steps_left=0).reason


@given(wire_s=seconds, step_s=st.just(0.0) | seconds, left_s=st.just(math.inf) | seconds, steps_left=st.integers(0, 9))
def test_never_beyond_what_is_left_and_never_worse_than_a_pause(
    wire_s: float, step_s: float, left_s: float, steps_left: int
) -> None:
    chosen = schedule(wire_s, step_s, left_s, steps_left)
    assert 0 <= chosen.steps <= min(MOST_STEPS, steps_left)
    assert chosen.exposed_s <= wire_s * 1.0001
    if chosen.steps:
        assert (chosen.steps + 1) * step_s + RESERVE <= left_s
