"""What a run remembers of itself: how long standbys stayed, what reconfigurations took."""

from __future__ import annotations

from dataclasses import replace

import pytest
from coordinator_states import Run, settings

from liver_slurm.coordinator.core.io import CapacitySeen
from liver_slurm.coordinator.core.recovery import recover
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import CapacitySnapshot, StandbyJob


def seen(run: Run, *jobs: str) -> None:
    found = tuple(StandbyJob(name, "running", ("n1",), partition="p") for name in jobs)
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, found)))


def test_spans_are_recovered(run: Run) -> None:
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


def test_ready_with_a_heartbeat(run: Run) -> None:
    run.register("standby-7-0", job_id="7", warm=False)
    run.say(m.Heartbeat(worker="standby-7-0", generation=-1, step=0, step_seconds=0.0, warm=True))
    warm_at = run.now
    run.tick(0.1)
    assert [(one.job_id, one.began) for one in run.state.history.spans] == [("7", warm_at)]


def test_a_released_job_was_not_taken(run: Run) -> None:
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


def test_measurements_are_recovered(run: Run) -> None:
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
