"""Workers come, are heard of, and go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from coordinator_lab import job
from coordinator_states import Run

from liver_slurm.base.table import Table
from liver_slurm.coordinator.core.io import CapacitySeen, FromPeer, Release
from liver_slurm.coordinator.core.step import step
from liver_slurm.coordinator.core.workers import Membership
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
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


@pytest.mark.parametrize(("workers", "every"), [(2, 0.0), (1000, 0.0), (4096, 4.096), (16384, 7.5)])
def test_a_large_run_beats_less_often_and_is_found_silent_as_soon(workers: int, every: float) -> None:
    run = Run(config=job(heartbeat=1.0, lost_after=30.0))
    run.train("live-0", "live-1")
    others = {f"standby-{number}": run.state.membership.workers["live-0"] for number in range(workers - 2)}
    everybody = {
        name: replace(worker, name=name) for name, worker in {**others, **run.state.membership.workers}.items()
    }
    run.state = replace(run.state, membership=replace(run.state.membership, workers=Table.of(everybody)))
    _, actions = step(
        run.state,
        FromPeer(run.now, b"live-1", m.Heartbeat(worker="live-1", generation=0, step=1, step_seconds=1.0, warm=True)),
    )
    assert run.sent(m.Alive, actions) == [("live-1", m.Alive(epoch=1, every=every))]
    assert run.state.membership.beat_seconds(run.state.settings.config.job) <= 30.0 / 4


def test_workers_are_found_by_job_and_by_address(run: Run) -> None:
    run.register("standby-7-0", job_id="7")
    run.say(m.Register(**words("standby-7-1", "7")), peer=b"elsewhere")
    known = run.state.membership
    assert [worker.name for worker in known.of_job("7", "standby")] == ["standby-7-0", "standby-7-1"]
    assert known.at(b"elsewhere") == known.get("standby-7-1")
    run.say(m.Register(**words("standby-7-1", "7")), peer=b"there by now")
    assert run.state.membership.at(b"elsewhere") is None
    run.say(m.Leaving(worker="standby-7-1", reason="told"), peer=b"there by now")
    left = run.state.membership
    assert left.at(b"there by now") is None
    assert [worker.name for worker in left.of_job("7", "standby")] == ["standby-7-0"]
    made_anew = Membership(workers=left.workers)
    assert (dict(made_anew.by_job), dict(made_anew.by_peer)) == (dict(left.by_job), dict(left.by_peer))


def words(name: str, job_id: str) -> dict[str, Any]:
    return {
        "run_id": "r", "worker": name, "role": "standby", "host": "h", "pid": 1, "job_id": job_id, "device": "cpu",
        "generation": -1, "step": 0, "warm": True,
    }  # fmt: skip
