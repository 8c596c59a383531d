"""How a run ends."""

from __future__ import annotations

from coordinator_states import Run

from liver_slurm.coordinator.core.io import Finish, StopAsked
from liver_slurm.coordinator.core.state import RunPhase
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
    assert new.state.lifecycle.outcome is not None
    assert "live-1 of the live world did not come back" in new.state.reason
