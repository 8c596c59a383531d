"""The clock that deadlines are told by."""

from __future__ import annotations

import itertools

import pytest

from liver_slurm.base.clock import SystemClock


class Machine:
    def __init__(self) -> None:
        self.wall, self.steady = 1000.0, 5.0
        self.clock = SystemClock(lambda: self.wall, lambda: self.steady)

    def passes(self, seconds: float, slept: float = 0.0) -> float:
        self.wall += seconds + slept
        self.steady += seconds
        return self.clock.now()


def test_it_is_the_machines_clock() -> None:
    machine = Machine()
    assert machine.passes(30.0) == pytest.approx(1030.0)


def test_small_corrections_are_left_to_whoever_makes_them() -> None:
    machine = Machine()
    machine.wall += 0.5
    assert machine.passes(10.0) == pytest.approx(1010.0)


def test_a_clock_that_is_set_ahead_is_followed_at_once() -> None:
    """A node that booted a minute behind, or a virtual machine that slept."""
    machine = Machine()
    assert machine.passes(1.0, slept=60.0) == pytest.approx(1061.0)
    assert machine.passes(1.0) == pytest.approx(1062.0)


def test_a_clock_that_is_set_back_is_waited_for() -> None:
    machine = Machine()
    machine.wall -= 60.0
    told = [machine.passes(1.0) for _ in range(200)]
    assert all(later > earlier for earlier, later in itertools.pairwise(told)), "it never goes backwards"
    assert told[9] == pytest.approx(1005.0), "deadlines come, late"
    assert told[-1] == pytest.approx(machine.wall, abs=1.1)


def test_the_machines_own() -> None:
    clock = SystemClock()
    assert clock.now() <= clock.now()
