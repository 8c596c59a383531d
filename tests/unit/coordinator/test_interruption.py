"""Slurm takes the guaranteed job's nodes: a last checkpoint, then all leave."""

from __future__ import annotations

from coordinator_states import Run

from liver_slurm.coordinator.core.io import Finish, Interrupted
from liver_slurm.coordinator.core.records import (
    Ended,
)
from liver_slurm.coordinator.core.state import RunPhase
from liver_slurm.protocol import messages as m


def requeued(run: Run) -> None:
    run.feed(Interrupted(run.now, "job 7 was requeued", requeued=True))


def test_a_requeued_job_saves_and_leaves(run: Run) -> None:
    run.register("standby-a")
    requeued(run)
    held = run.state.barriers.checkpoint
    assert held is not None
    for name in ("live-0", "live-1"):
        run.say(m.BoundaryVote(worker=name, boundary=held.number, step=held.step, accepted=True, current_step=0))
    assert not run.sent(m.Leave)
    run.say(m.CheckpointWritten(worker="live-0", step=held.step, ok=True, path="p"))
    assert sorted(name for name, _ in run.sent(m.Leave)) == ["live-0", "live-1"]
    assert run.journaled(Ended) == []
    assert [event["reason"] for event in run.events("interrupted")] == ["job 7 was requeued"]
    run.say(m.Heartbeat(worker="standby-a", generation=-1, step=0, step_seconds=0.0, warm=True))
    assert not [name for name, _ in run.sent(m.Leave) if name == "standby-a"]
    for name in ("live-0", "live-1"):
        run.say(m.Leaving(worker=name, reason="told"))
    run.tick()
    assert run.actions[-1] == Finish(3, "job 7 was requeued", over=False)


def test_an_earlier_checkpoint_is_not_the_last(run: Run) -> None:
    run.say(m.Heartbeat(worker="live-0", generation=0, step=9, step_seconds=0.1, warm=True))
    requeued(run)
    for ok in (True, False):
        run.say(m.CheckpointWritten(worker="live-0", step=5, ok=ok, path="p", error="no space"))
        assert run.state.phase is not RunPhase.INTERRUPTED
    run.say(m.CheckpointWritten(worker="live-0", step=9, ok=False, path="p", error="no space"))
    assert run.state.phase is RunPhase.INTERRUPTED


def test_killed_workers_are_no_failure(run: Run) -> None:
    requeued(run)
    run.say(m.Failed(worker="live-1", generation=0, step=3, error="killed"))
    assert run.state.phase is RunPhase.INTERRUPTED
    assert run.journaled(Ended) == []


def test_a_checkpoint_that_does_not_come(run: Run) -> None:
    requeued(run)
    for _ in range(25):
        run.tick(1.0)
        for name in ("live-0", "live-1"):
            if name in run.state.membership.workers:
                run.say(m.Heartbeat(worker=name, generation=0, step=0, step_seconds=0.1, warm=True))
    assert run.state.phase is RunPhase.INTERRUPTED


def test_in_the_grace_time_workers_stay(run: Run) -> None:
    run.feed(Interrupted(run.now, "job 7 is being preempted", requeued=False))
    held = run.state.barriers.checkpoint
    assert held is not None
    run.say(m.CheckpointWritten(worker="live-0", step=held.step, ok=True, path="p"))
    run.tick(1.0)
    assert not run.sent(m.Leave)
    requeued(run)
    run.say(m.CheckpointWritten(worker="live-0", step=held.step + 1, ok=True, path="p"))
    assert run.state.phase is RunPhase.INTERRUPTED


def test_before_training_all_leave_at_once() -> None:
    run = Run()
    run.register("live-0")
    requeued(run)
    assert run.state.phase is RunPhase.INTERRUPTED
