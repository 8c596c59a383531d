"""How long standbys stay: estimates, rest, and what is remembered across a restart."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from coordinator_states import Run, settings
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.coordinator.core.io import CapacitySeen
from liver_slurm.coordinator.core.recovery import recover
from liver_slurm.policy.survival import LONGEST_REST, Life, hazards, resting, until_first_leaves
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import CapacitySnapshot, StandbyJob


def life(began: float, ended: float | None, taken: bool = True, partition: str = "p") -> Life:
    return Life(f"{began}", partition, began, ended, taken)


def test_without_observations_the_prior_holds_at_every_age() -> None:
    rates = hazards([], 900.0, 0.0)
    for age in (0.0, 59.0, 700.0, 1e6):
        assert until_first_leaves(rates, [age]) == pytest.approx(900.0)
    assert until_first_leaves(rates, [0.0, 100.0, 1000.0]) == pytest.approx(300.0)
    assert until_first_leaves(rates, []) == math.inf


def test_many_observations_outweigh_the_prior() -> None:
    died_young = [life(0.0, 30.0)] * 200
    assert until_first_leaves(hazards(died_young, 900.0, 0.0), [0.0]) < 60
    stay = [life(0.0, None)] * 50
    assert until_first_leaves(hazards(stay, 900.0, 10_000.0), [0.0]) > 10_000
    released = [life(0.0, 30.0, taken=False)] * 200
    assert until_first_leaves(hazards(released, 900.0, 0.0), [0.0]) > 900, "those that we ended did not die"
    mixed = [life(0.0, 30.0)] * 50 + [life(0.0, 8000.0)] * 20
    rates = hazards(mixed, 900.0, 0.0)
    assert until_first_leaves(rates, [400.0]) > 1.5 * until_first_leaves(rates, [0.0]), "who has stayed tends to stay"


@given(st.lists(st.floats(0, 20_000), max_size=20), st.lists(st.floats(0, 20_000), min_size=1, max_size=4))
def test_the_integral_is_that_of_the_survival(lengths: list[float], ages: list[float]) -> None:
    rates = hazards([life(0.0, length) for length in lengths], 900.0, 0.0)
    found = until_first_leaves(rates, ages)
    assert 0 < found <= min(until_first_leaves(rates, [age]) for age in ages) * (1 + 1e-9)
    assert 1 / (len(ages) * max(rates)) <= found * (1 + 1e-9)
    assert found <= 1 / (len(ages) * min(rates)) * (1 + 1e-9)


def test_a_partition_rests_after_three_short_lives_and_longer_with_each_more() -> None:
    short = [life(start, start + 20.0) for start in (0.0, 100.0, 200.0, 300.0)]
    assert resting(short[:2], 130.0, 60.0, 30.0) == {}
    assert resting(short[:3], 230.0, 60.0, 30.0) == {"p": (250.0, 3)}
    assert resting(short[:3], 251.0, 60.0, 30.0) == {}
    assert resting(short, 330.0, 60.0, 30.0) == {"p": (380.0, 4)}
    many = [life(start * 100.0, start * 100.0 + 20.0) for start in range(100)]
    assert resting(many, 9930.0, 60.0, 30.0) == {"p": (9920.0 + LONGEST_REST, 100)}


@pytest.mark.parametrize(
    "good",
    [life(210.0, 290.0), life(150.0, None), life(210.0, 230.0, partition="q"), life(210.0, 230.0, taken=False)],
    ids=["a long life", "one that stays", "elsewhere", "ended by us"],
)
def test_what_does_not_count(good: Life) -> None:
    short = [life(start, start + 20.0) for start in (0.0, 100.0)]
    assert resting([*short, good], 295.0, 60.0, 300.0) == {}


def test_standbys_that_are_taken_at_once_count_once() -> None:
    assert resting([life(0.0, 20.0 + index) for index in range(4)], 30.0, 60.0, 30.0) == {}


# ---- remembered ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run() -> Run:
    one = Run()
    one.train("live-0", "live-1")
    return one


def seen(run: Run, *jobs: str) -> None:
    found = tuple(StandbyJob(name, "running", ("n1",), partition="p") for name in jobs)
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, found)))


def test_lives_are_kept_and_recovered(run: Run) -> None:
    begin = run.now
    seen(run, "7", "8", "9")
    for number in (7, 8, 9):
        run.register(f"standby-{number}-0", job_id=str(number))
    run.tick(10.0)
    run.say(m.Notice(worker="standby-7-0", reason="SIGTERM", time=run.now, deadline=run.now + 30))
    assert [(one.job_id, one.partition, one.ended, one.taken) for one in run.state.history.spans] == [
        ("7", "p", begin + 10.0, True),
        ("8", "p", None, False),
        ("9", "p", None, False),
    ]
    new = Run(recover(run.records, settings(epoch=2), run.now + 5.0))
    assert new.state.history.spans == run.state.history.spans, (
        "a restarted coordinator knows since when each has been there"
    )
    for name in ("live-0", "live-1"):
        new.register(name, 0)
    new.register("standby-8-0", job_id="8")
    seen(new, "8", "9")
    assert new.state.history.spans == run.state.history.spans, "9 has yet to register"
    seen(new, "8")
    assert [(one.job_id, one.ended, one.taken) for one in new.state.history.spans[1:]] == [
        ("8", None, False),
        ("9", new.now, True),
    ]


def test_one_that_becomes_ready_with_a_heartbeat_is_seen(run: Run) -> None:
    run.register("standby-7-0", job_id="7", warm=False)
    run.say(m.Heartbeat(worker="standby-7-0", generation=-1, step=0, step_seconds=0.0, warm=True))
    warm_at = run.now
    run.tick(0.1)
    assert [(one.job_id, one.began) for one in run.state.history.spans] == [("7", warm_at)]


def test_one_that_we_end_was_not_taken(run: Run) -> None:
    pinned = m.ResizeRequest(workers=2)
    run.say(pinned)
    run.state = replace(run.state, settings=replace(run.state.settings, standby_workers=4))
    seen(run, "7")
    run.register("standby-7-0", job_id="7")
    for _ in range(8):
        run.now += 10.0
        for name in ("live-0", "live-1", "standby-7-0"):
            run.say(m.Heartbeat(worker=name, generation=-1, step=0, step_seconds=0.0, warm=True))
        seen(run, "7")
    assert run.events("standby_release")[0]["job_id"] == "7"
    (one,) = run.state.history.spans
    assert (one.ended is not None, one.taken) == (True, False)
    assert run.sent(m.Leave)[0][0] == "standby-7-0"


def test_reconfigurations_are_measured_and_recovered(run: Run) -> None:
    run.register("standby-a")
    run.register("standby-b")
    run.tick(0.3)
    run.tick(2.0)
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    (one,) = run.state.history.measured
    assert (one.generation, one.added, one.prepare_s) == (1, 2, pytest.approx(2.0))
    assert one.exposed_s == pytest.approx(run.events("reconfiguration_committed")[0]["exposed_s"])
    again = recover(run.records, settings(epoch=2), run.now)
    assert (again.history.measured, again.history.steady_since) == ((one,), run.state.history.steady_since)
