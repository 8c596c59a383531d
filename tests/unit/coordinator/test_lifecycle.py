"""How a run ends."""

from __future__ import annotations

import msgspec
from coordinator_lab import job
from coordinator_states import Run

from liver_slurm.coordinator.core.io import CheckpointFound, Finish, StopAsked
from liver_slurm.coordinator.core.records import MembersLost
from liver_slurm.coordinator.core.state import RunPhase
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
from liver_slurm.protocol import messages as m


def test_finishing(run: Run) -> None:
    run.begin_to_grow()
    steps = run.state.settings.config.train.steps
    run.say(m.Finished(worker="live-0", step=steps))
    assert run.sent(m.Abort)
    assert run.state.phase is RunPhase.FINISHING
    run.say(m.Finished(worker="live-1", step=steps))
    assert run.state.phase is RunPhase.FINISHED
    assert len(run.sent(m.Leave)) == 4
    for name in ("live-0", "live-1", "standby-a"):
        run.say(m.Leaving(worker=name, reason=""))
    assert not any(isinstance(action, Finish) for action in run.actions)
    run.say(m.Leaving(worker="standby-b", reason=""))
    assert run.actions[-1] == Finish(0, f"all {steps} steps are trained")


def test_members_may_end_training_early_with_a_reason(run: Run) -> None:
    """As when the validation loss becomes no better; without a reason, a step before the last is not the last."""
    run.say(m.Finished(worker="live-0", step=7))
    assert run.state.rejected["impossible"] == 1
    run.say(m.Finished(worker="live-0", step=7, reason="no better"))
    assert run.state.phase is RunPhase.FINISHING
    beat = m.Heartbeat(worker="live-1", generation=0, step=7, step_seconds=0.1, warm=True)
    run.say(msgspec.structs.replace(beat, finished=True, finished_why="no better"))  # the message itself was lost
    assert run.state.phase is RunPhase.FINISHED
    assert run.state.lifecycle.outcome == (0, "no better")


def test_cancelling(run: Run) -> None:
    run.feed(StopAsked(run.now, "cancelled by SIGTERM"))
    assert run.state.lifecycle.outcome == (3, "cancelled by SIGTERM")
    run.tick(10.1)
    assert run.actions[-1] == Finish(3, "cancelled by SIGTERM")


def test_all_finish_while_the_coordinator_comes_back(run: Run) -> None:
    steps = run.state.settings.config.train.steps
    new = run.restarted()
    for name in ("live-0", "live-1"):
        new.register(name, 0, steps)
        new.say(m.Finished(worker=name, step=steps))
    assert new.state.lifecycle.outcome == (0, f"all {steps} steps are trained")


def test_a_member_died_while_the_run_finished(run: Run) -> None:
    steps = run.state.settings.config.train.steps
    new = run.restarted()
    new.register("live-0", 0, steps)
    new.say(m.Finished(worker="live-0", step=steps))
    assert new.state.phase is RunPhase.FINISHING
    for _ in range(3):
        new.tick(2.0)
        new.say(m.Heartbeat(worker="live-0", generation=0, step=steps, step_seconds=0.1, warm=True))
    assert new.journaled(MembersLost)[-1].members == ("live-1",)
    assert [name for name, _ in new.sent(m.Halt)] == ["live-0"]
    new.say(m.Parked(worker="live-0", generation=0, step=steps, error="closed by peer"))
    new.feed(CheckpointFound(new.now, f"/c/step-{steps}", steps))
    new.prepare_all()
    new.enter_all()
    assert new.state.phase is ReconfigurationPhase.STEADY
    new.say(m.Finished(worker="live-0", step=steps))
    assert new.state.lifecycle.outcome == (0, f"all {steps} steps are trained")


def test_a_last_checkpoint_that_failed_is_no_success(run: Run) -> None:
    steps = run.state.settings.config.train.steps
    run.say(m.CheckpointWritten(worker="live-1", step=steps, ok=False, error="OSError: no space"))
    for name in ("live-0", "live-1"):
        run.say(m.Finished(worker=name, step=steps))
    why = f"all {steps} steps are trained, but the last checkpoint could not be written: OSError: no space"
    assert run.state.lifecycle.outcome == (1, why)


def test_one_that_failed_before_the_last_is_made_up_for(run: Run) -> None:
    steps = run.state.settings.config.train.steps
    run.say(m.CheckpointWritten(worker="live-0", step=3, ok=False, error="no space"))
    run.say(m.CheckpointWritten(worker="live-0", step=steps, ok=True, path="p"))
    for name in ("live-0", "live-1"):
        run.say(m.Finished(worker=name, step=steps))
    assert run.state.lifecycle.outcome == (0, f"all {steps} steps are trained")


def test_a_member_that_hangs_in_the_last_step_is_lost(run: Run) -> None:
    """Its control thread answers; who leaves the world then is well, and the other one is lost."""
    steps, job = run.state.settings.config.train.steps, run.state.settings.config.job
    run.say(m.Finished(worker="live-0", step=steps))

    def pass_time(seconds: float) -> None:
        for _ in range(int(seconds)):
            run.tick(1.0)
            for name, done in (("live-0", True), ("live-1", False)):
                step = steps if done else steps - 1
                beat = m.Heartbeat(worker=name, generation=0, step=step, step_seconds=0.1, warm=True, finished=done)
                run.say(beat)

    pass_time(job.prepare_timeout)
    assert not run.state.damage.broken
    pass_time(2.0)
    assert [name for name, _ in run.sent(m.Halt)][:2] == ["live-0", "live-1"]
    assert "live-1 did not finish within" in run.journaled(MembersLost)[0].reason
    run.say(m.Parked(worker="live-0", generation=0, step=steps, error="closed by peer"))
    pass_time(job.lost_after + 2.0)
    assert run.journaled(MembersLost)[-1].members == ("live-1",)


def test_a_hang_behind_the_last_step_is_found_though_word_came_late() -> None:
    """One has finished before the word came that the other has entered the world."""
    run = Run(config=job(steps=10))
    for name in ("live-0", "live-1"):
        run.register(name)
    for name in ("live-0", "live-1"):
        run.say(m.Prepared(worker=name, generation=0, ok=True))
    run.say(m.WorldEntered(worker="live-0", generation=0, step=0, time=run.now))
    run.say(m.Finished(worker="live-0", step=10))
    assert run.state.phase is ReconfigurationPhase.CUTOVER
    run.say(m.WorldEntered(worker="live-1", generation=0, step=0, time=run.now))
    assert run.state.phase is RunPhase.FINISHING
    until = run.now + run.state.settings.config.job.prepare_timeout + 2.0
    while not run.state.damage.broken:
        assert run.now < until
        run.now += 1.0
        for name in ("live-0", "live-1"):
            beat = m.Heartbeat(worker=name, generation=0, step=10, step_seconds=0.2, warm=True)
            run.say(msgspec.structs.replace(beat, finished=name == "live-0"))
        run.tick()
    assert "live-1 did not finish" in run.state.reason


def copying(run: Run) -> None:
    steps = run.state.settings.config.train.steps
    run.say(m.Heartbeat(worker="live-0", generation=0, step=steps, step_seconds=0.2, warm=True, copying=True))


def test_a_finished_run_waits_for_the_copy_of_its_last_checkpoint(run: Run) -> None:
    steps = run.state.settings.config.train.steps
    copying(run)
    for name in ("live-0", "live-1"):
        run.say(m.Finished(worker=name, step=steps))
    assert run.state.phase is RunPhase.FINISHED
    run.say(m.Leaving(worker="live-1", reason="told"))
    for _ in range(100):
        run.now += 1.0
        copying(run)
        run.tick()
    assert not [action for action in run.actions if isinstance(action, Finish)]
    assert "live-0 still copies the last checkpoint" in run.state.reason
    run.say(m.Leaving(worker="live-0", reason="told"))
    assert run.actions[-1] == Finish(0, f"all {steps} steps are trained")


def test_a_copy_is_waited_for_while_its_worker_lives_and_no_signal_comes(run: Run) -> None:
    steps = run.state.settings.config.train.steps
    copying(run)
    for name in ("live-0", "live-1"):
        run.say(m.Finished(worker=name, step=steps))
    run.say(m.Leaving(worker="live-1", reason="told"))
    dies = Run(run.state)
    for _ in range(int(run.state.settings.config.job.lost_after) + 2):
        dies.tick(1.0)
    assert isinstance(dies.actions[-1], Finish)
    run.now += 11.0
    copying(run)
    run.feed(StopAsked(run.now, "cancelled by SIGTERM"))
    assert run.actions[-1] == Finish(0, f"all {steps} steps are trained")
