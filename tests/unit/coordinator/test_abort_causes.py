"""What makes a reconfiguration be given up, or hurry."""

from __future__ import annotations

import pytest
from coordinator_states import Run

from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
from liver_slurm.protocol import messages as m


@pytest.mark.parametrize("when", ["prepare", "boundary", "stream"])
@pytest.mark.parametrize("who", ["live-1", "standby-a"])
def test_a_member_lost_before_the_commit(run: Run, when: str, who: str) -> None:
    run.begin_to_grow()
    if when != "prepare":
        run.prepare_all()
    if when == "stream":
        run.agree()
        run.stream_all(("live-0",))
    before = run.live
    run.say(m.Failed(worker=who, generation=0, step=0, error="boom"))
    aborts = {name for name, _ in run.sent(m.Abort)}
    assert aborts == {"live-0", "live-1", "standby-a", "standby-b"} - {who}
    assert run.state.world.live == before
    if who == "live-1":
        assert run.state.damage.lost == ("live-1",)
        assert [name for name, _ in run.sent(m.Halt)] == ["live-0"]
    else:
        assert run.state.phase in (ReconfigurationPhase.STEADY, ReconfigurationPhase.PREPARE)
        assert not run.sent(m.Leave)


def test_notice_of_a_joiner(run: Run) -> None:
    run.begin_to_grow()
    actions = run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now))
    assert run.sent(m.Abort, actions)
    assert [name for name, _ in run.sent(m.Leave, actions)] == ["standby-a"]
    assert run.state.world.attempt is not None
    assert sorted(run.state.world.attempt.target.members) == ["live-0", "live-1", "standby-b"]


def test_notice_of_a_leaver(run: Run) -> None:
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    actions = run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now, deadline=run.now + 9))
    assert run.sent(m.Prepare, actions), "in the same turn"
    attempt = run.state.world.attempt
    assert attempt is not None
    assert attempt.target.members == ("live-0", "live-1", "standby-b")
    assert attempt.deadline == run.now + 9
    run.prepare_all()
    run.agree()
    run.stream_all()
    assert [name for name, _ in run.sent(m.Leave)] == ["standby-a"]
    run.say(m.Leaving(worker="standby-a", reason="SIGTERM"))
    assert not run.events("worker_lost")
    run.enter_all()
    assert run.state.phase is ReconfigurationPhase.STEADY


def test_notice_after_the_commit(run: Run) -> None:
    # LS-9
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now))
    assert run.state.phase is ReconfigurationPhase.CUTOVER
    run.enter_all()
    assert run.state.world.attempt is not None
    assert "standby-a" not in run.state.world.attempt.target.members


@pytest.mark.parametrize("left", [60.0, 1.0])
def test_who_was_wanted_first_does_not_wait_for_the_next_one(run: Run, left: float) -> None:
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    assert run.state.history.measured, "it is known what a change takes"
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now, deadline=run.now + 60))
    run.prepare_all()
    actions = run.say(m.Notice(worker="standby-b", reason="SIGTERM", time=run.now, deadline=run.now + left))
    attempt = run.state.world.attempt
    assert attempt is not None
    if left < 60.0:
        assert run.sent(m.Abort, actions), "there is no time for two changes"
        assert attempt.target.members == ("live-0", "live-1")
        return
    assert not run.sent(m.Abort, actions)
    assert attempt.deadline <= run.now + left / 2, "the other half is for the next one"
    run.agree()
    run.stream_all()
    assert [name for name, _ in run.sent(m.Leave)] == ["standby-a"]
    run.enter_all()
    attempt = run.state.world.attempt
    assert attempt is not None
    assert attempt.target.members == ("live-0", "live-1"), "and is so at once"


def test_a_notice_before_all_are_prepared_joins_the_others(run: Run) -> None:
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    for name in ("standby-a", "standby-b"):
        run.say(m.Notice(worker=name, reason="SIGTERM", time=run.now, deadline=run.now + 60))
    attempt = run.state.world.attempt
    assert attempt is not None
    assert attempt.target.members == ("live-0", "live-1")


def test_deadline(run: Run) -> None:
    run.begin_to_grow()
    run.tick(1000.0)  # this process stood still: nobody is lost for that
    assert "not ready" in run.events("reconfiguration_aborted")[0]["reason"]
    assert not run.events("worker_lost")
