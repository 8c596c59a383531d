"""The two-phase protocol: prepare, stream, cut over, retire."""

from __future__ import annotations

import pytest
from coordinator_states import Run

from liver_slurm.coordinator.core.records import (
    AttemptStarted,
)
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
from liver_slurm.protocol import messages as m


def test_a_whole_reconfiguration(run: Run) -> None:
    run.begin_to_grow()
    generation = run.state.world.next_generation - 1
    assert {name for name, _ in run.sent(m.Prepare)[2:]} == {"live-0", "live-1", "standby-a", "standby-b"}
    run.prepare_all()
    assert {name for name, _ in run.sent(m.ProposeBoundary)} == {"live-0", "live-1"}
    run.agree()
    assert len(run.sent(m.ConfirmBoundary)) == 4, "joiners start streaming with it"
    run.stream_all()
    # Each survivor keeps its half of the optimizer's state: the first of two quarters of four.
    assert run.live.members == ("live-0", "standby-a", "live-1", "standby-b")
    run.enter_all(after=0.5)
    (event,) = run.events("reconfiguration_committed")
    assert event["pause_s"] == pytest.approx(0.49)
    promised = "from to pause_s prepare_s stream_s bytes_moved staging_peak_bytes mode cutover_step digests_checked"
    added = "reason members joiners leavers bytes_remote bytes_local"
    assert {*promised.split(), *added.split()} <= event.keys()
    assert event["generation"] == generation
    for name in ("started", "prepared", "streamed"):
        assert run.events(f"reconfiguration_{name}")[-1]["reason"]
    assert run.state.phase is ReconfigurationPhase.STEADY


def test_the_record_comes_before_the_commit(run: Run) -> None:
    # LS-6
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()
    last = [type(getattr(action, "record", getattr(action, "message", None))).__name__ for action in run.actions]
    assert last.index("Commit") > last.index("Committed")
    grown = len(last) - 1 - last[::-1].index("Committed")
    assert "Commit" in last[grown:]
    assert len(run.sent(m.Commit)) == 2 + 4


def test_a_failed_target_backs_off(run: Run) -> None:
    run.begin_to_grow()
    run.say(m.Prepared(worker="standby-a", generation=1, ok=False, error="no memory"))
    assert run.state.phase is ReconfigurationPhase.STEADY
    assert "tried again in 1.0 s" in run.state.reason
    run.tick(0.9)
    assert run.state.world.attempt is None
    run.tick(0.2)
    assert run.state.world.attempt is not None
    assert [record.generation for record in run.journaled(AttemptStarted)] == [0, 1, 2]
    run.say(m.Prepared(worker="standby-a", generation=2, ok=False, error="no memory"))
    assert "tried again in 2.0 s" in run.state.reason


def test_a_lost_commit_is_sent_again(run: Run) -> None:
    # LS-8, LS-15
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()
    beat = m.Heartbeat(worker="standby-a", generation=-1, step=0, step_seconds=0.0, warm=True)
    assert not run.sent(m.Commit, run.say(beat))
    run.now += 4.9
    run.say(beat)
    run.now += 0.2
    assert run.sent(m.Commit, run.say(beat))


def test_a_heartbeat_does_not_enter_a_world_that_trains(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.agree()
    run.prepare_all()
    run.stream_all()
    run.stand()
    assert run.state.phase is ReconfigurationPhase.CUTOVER
    run.enter_all()
    assert run.state.phase is ReconfigurationPhase.STEADY
