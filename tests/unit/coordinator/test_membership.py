"""Workers come, are heard of, and go."""

from __future__ import annotations

from coordinator_states import Run

from liver_slurm.coordinator.core.io import CapacitySeen, Release
from liver_slurm.coordinator.core.parts import ReconfigurationPhase
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import CapacitySnapshot, StandbyJob


def test_who_is_refused(run: Run) -> None:
    for changes, word in [
        ({"run_id": "other"}, "this is run r"),
        ({"protocol": 99}, "protocol 99"),
        ({"pid": -5}, "is taken"),
        ({"generation": 5}, "never committed"),
    ]:
        actions = run.register("live-0", **changes)
        ((_, refused),) = run.sent(m.Refused, actions)
        assert word in refused.reason
    assert run.live.members == ("live-0", "live-1")


def test_silence_is_loss(run: Run) -> None:
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, (StandbyJob("standby-a", "running"),))))
    run.register("standby-a")
    for _ in range(30):
        run.tick(0.25)
        for name in ("live-0", "live-1"):
            run.say(m.Heartbeat(worker=name, generation=0, step=0, step_seconds=0.1, warm=True))
    assert [event["worker"] for event in run.events("worker_lost")] == ["standby-a"]
    assert Release("standby-a") in run.actions
    assert run.state.phase is ReconfigurationPhase.STEADY
