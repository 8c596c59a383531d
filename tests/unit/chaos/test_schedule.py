"""The schedule of faults is a function of seed, number and targets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.base.faults import OUTSIDE, Fault
from liver_slurm.chaos.schedule import (
    LASTS,
    ROLES,
    Program,
    Role,
    Target,
    choose,
    gap,
    parse_faults,
    parse_rate,
    parse_roles,
)


def target(name: str, role: Role = "live", reclaimable: bool = False) -> Target:
    return Target(name, role, "n1", 4711, 1, reclaimable=reclaimable)


ALL = [
    target("live-0"),
    target("standby-1-0", "live", reclaimable=True),
    target("standby-2-0", "standby", reclaimable=True),
    target("coordinator", "coordinator"),
]
programs = st.builds(
    Program,
    seed=st.integers(),
    per_second=st.floats(1e-6, 10),
    faults=st.lists(st.sampled_from(OUTSIDE), min_size=1, unique=True).map(tuple),
    roles=st.lists(st.sampled_from(ROLES), min_size=1, unique=True).map(tuple),
)


@given(programs, st.integers(0, 10_000), st.permutations(ALL), st.integers(0, len(ALL)))
def test_a_strike_is_allowed_and_does_not_depend_on_the_order(
    program: Program, number: int, targets: list[Target], count: int
) -> None:
    there = targets[:count]
    strike, reason = choose(program, number, there)
    assert (strike, reason) == choose(program, number, reversed(there))
    fitting = [
        (fault, one)
        for fault in program.faults
        for one in there
        if one.role in program.roles and (fault is not Fault.PREEMPT or one.reclaimable)
    ]
    if strike is None:
        assert fitting == []
        assert reason.startswith("no target")
    else:
        assert (strike.fault, strike.target) in fitting
        low, high = LASTS.get(strike.fault, (0.0, 0.0))
        assert low <= strike.seconds <= high


@given(programs, st.integers(0, 10_000))
def test_a_gap_is_near_the_mean_and_the_same_again(program: Program, number: int) -> None:
    assert 0.5 <= gap(program, number) * program.per_second <= 1.5
    assert gap(program, number) == gap(program, number)


def test_a_seed_gives_every_fault_to_every_target_and_the_mean_rate() -> None:
    program = Program(seed=7, per_second=1 / 60)
    struck = {(strike.fault, strike.target.name) for n in range(500) if (strike := choose(program, n, ALL)[0])}
    assert struck == {
        (fault, one.name) for fault in OUTSIDE for one in ALL if fault is not Fault.PREEMPT or one.reclaimable
    }
    assert sum(gap(program, n) for n in range(500)) / 500 == pytest.approx(60, rel=0.1)


def test_a_seed_chooses_the_same_in_every_version() -> None:
    """A strike of a journal can be done again, years later."""
    program = Program(seed=7, per_second=1 / 60)
    first = [choose(program, number, ALL)[0] for number in range(3)]
    assert [(one.fault.value, one.target.name, one.seconds) for one in first if one] == EXPECTED


EXPECTED = [("delay", "live-0", 18.5), ("disk-full", "standby-1-0", 12.3), ("preempt", "standby-2-0", 37.8)]


@pytest.mark.parametrize(
    ("text", "rate"), [("1/min", 1 / 60), ("30/h", 30 / 3600), ("0.5/s", 0.5), (" 2/MIN ", 1 / 30)]
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["", "1", "0/min", "-1/min", "1/day", "1/minute", "inf/s", "nan/s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="no rate"):
        parse_rate(text)


def test_lists() -> None:
    assert parse_faults("stop, kill,stop") == (Fault.STOP, Fault.KILL)
    assert parse_roles("coordinator,live") == ("live", "coordinator")
    for text in ("", "kill,rain", "fail"):
        with pytest.raises(ValueError, match="is no fault; allowed: kill, stop"):
            parse_faults(text)
    with pytest.raises(ValueError, match="worker is no target"):
        parse_roles("worker")
