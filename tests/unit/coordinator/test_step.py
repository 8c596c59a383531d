"""The coordinator's state machine, one story a test."""

from __future__ import annotations

from dataclasses import replace

import pytest
from coordinator_lab import job
from coordinator_states import START, Run, settings

from liver_slurm.coordinator.core import client_requests
from liver_slurm.coordinator.core.io import CapacitySeen, Finish, Launch, Release, Send, StopAsked
from liver_slurm.coordinator.core.parts import ReconfigurationPhase
from liver_slurm.coordinator.core.records import AttemptStarted, Committed, Entered
from liver_slurm.coordinator.core.recovery import recover
from liver_slurm.coordinator.core.state import RunPhase
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import CapacitySnapshot, Headroom, StandbyJob


@pytest.fixture
def run() -> Run:
    one = Run()
    one.train("live-0", "live-1")
    return one


def grow(run: Run) -> None:
    """Two standbys come, and the policy wants them."""
    run.register("standby-a")
    run.register("standby-b")
    run.tick(0.3)
    assert run.state.phase is ReconfigurationPhase.PREPARE


def test_world_0_waits_for_all_live_workers_and_ranks_them_by_number() -> None:
    run = Run(workers=3)
    run.register("live-10")
    run.register("standby-a")
    run.register("live-2")
    assert run.state.world.attempt is None
    run.register("live-1")
    (_, prepare), *_ = run.sent(m.Prepare)
    assert prepare.members == ["live-1", "live-2", "live-10"]
    assert (prepare.source_generation, prepare.generation, prepare.store_port) == (-1, 0, 1)


def test_a_live_worker_that_is_not_warm_is_waited_for() -> None:
    run = Run()
    run.register("live-0")
    run.register("live-1", warm=False)
    assert run.state.world.attempt is None
    run.say(m.Heartbeat(worker="live-1", generation=-1, step=0, step_seconds=0.0, warm=True))
    assert run.state.world.attempt is not None


def test_world_0_that_does_not_come_fails_the_run() -> None:
    run = Run()
    run.register("live-0")
    for _ in range(1000):
        run.tick(1.0)
        if run.state.over:
            break
        run.say(m.Heartbeat(worker="live-0", generation=-1, step=0, step_seconds=0.0, warm=True))
    assert run.state.lifecycle.outcome == (1, "only 1 of 2 live workers were ready in time; see their logs")


def test_a_resumed_run_starts_at_its_checkpoint() -> None:
    run = Run(settings and recover([], settings(checkpoint="/c/step-7", start_step=7), START))
    run.register("live-0")
    run.register("live-1")
    assert {prepare.checkpoint for _, prepare in run.sent(m.Prepare)} == {"/c/step-7"}
    run.prepare_all()
    assert {commit.step for _, commit in run.sent(m.Commit)} == {7}


def test_a_whole_reconfiguration(run: Run) -> None:
    grow(run)
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


def test_the_commit_record_comes_before_any_commit(run: Run) -> None:
    # LS-6
    grow(run)
    run.prepare_all()
    run.agree()
    run.stream_all()
    last = [type(getattr(action, "record", getattr(action, "message", None))).__name__ for action in run.actions]
    assert last.index("Commit") > last.index("Committed")
    grown = len(last) - 1 - last[::-1].index("Committed")
    assert "Commit" in last[grown:]
    assert len(run.sent(m.Commit)) == 2 + 4


def test_a_refused_boundary_is_proposed_again_further_ahead(run: Run) -> None:
    grow(run)
    run.prepare_all()
    first = run.state.barriers.cutover
    assert first is not None
    run.say(m.BoundaryVote(worker="live-0", boundary=first.number, step=first.step, accepted=True, current_step=0))
    refusal = m.BoundaryVote(
        worker="live-1", boundary=first.number, step=first.step, accepted=False, current_step=first.step + 3
    )
    run.say(refusal)
    second = run.state.barriers.cutover
    assert second is not None
    assert (second.number, second.accepted) == (first.number, frozenset())
    assert second.step > first.step + 3
    run.say(m.BoundaryVote(worker="live-0", boundary=first.number, step=first.step, accepted=True, current_step=0))
    assert run.state.barriers.cutover == second, "a vote on the old step is late"
    assert run.state.rejected["late"] == 1


def test_a_proposal_leaves_time_for_the_message(run: Run) -> None:
    for name in run.live.members:
        run.say(m.Heartbeat(worker=name, generation=0, step=100, step_seconds=0.01, warm=True))
    grow(run)  # 0.3 s, 30 steps later
    run.prepare_all()
    assert run.state.barriers.cutover is not None
    assert run.state.barriers.cutover.step >= 100 + 30 + 15


@pytest.mark.parametrize("when", ["prepare", "boundary", "stream"])
@pytest.mark.parametrize("who", ["live-1", "standby-a"])
def test_a_member_lost_before_the_commit(run: Run, when: str, who: str) -> None:
    grow(run)
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
        assert run.state.phase is RunPhase.FAILED
        assert "submit --resume /runs/r" in run.state.reason
    else:
        assert run.state.phase in (ReconfigurationPhase.STEADY, ReconfigurationPhase.PREPARE)
        assert not run.sent(m.Leave)


def test_the_same_target_is_not_tried_again_at_once(run: Run) -> None:
    grow(run)
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


def test_a_notice_of_a_joiner_aborts_and_plans_without_it(run: Run) -> None:
    grow(run)
    actions = run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now))
    assert run.sent(m.Abort, actions)
    assert [name for name, _ in run.sent(m.Leave, actions)] == ["standby-a"]
    assert run.state.world.attempt is not None
    assert sorted(run.state.world.attempt.target.members) == ["live-0", "live-1", "standby-b"]


def test_a_notice_of_a_leaver_shrinks_at_once_and_dismisses_it_with_the_commit(run: Run) -> None:
    grow(run)
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


def test_one_worker_of_a_standby_job_speaks_for_all_of_it(run: Run) -> None:
    run.register("standby-a", job_id="7")
    run.register("standby-b", job_id="7")
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now))
    assert [event["worker"] for event in run.events("notice")] == ["standby-a", "standby-b"]


def test_a_notice_after_the_commit_queues(run: Run) -> None:
    # LS-9
    grow(run)
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now))
    assert run.state.phase is ReconfigurationPhase.CUTOVER
    run.enter_all()
    assert run.state.world.attempt is not None
    assert "standby-a" not in run.state.world.attempt.target.members


def test_a_deadline_that_passes_aborts(run: Run) -> None:
    grow(run)
    run.tick(1000.0)  # this process stood still: nobody is lost for that
    assert "not ready" in run.events("reconfiguration_aborted")[0]["reason"]
    assert not run.events("worker_lost")


def test_silence_is_loss_and_a_hung_standbys_job_is_ended(run: Run) -> None:
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, (StandbyJob("standby-a", "running"),))))
    run.register("standby-a")
    for _ in range(30):
        run.tick(0.25)
        for name in ("live-0", "live-1"):
            run.say(m.Heartbeat(worker=name, generation=0, step=0, step_seconds=0.1, warm=True))
    assert [event["worker"] for event in run.events("worker_lost")] == ["standby-a"]
    assert Release("standby-a") in run.actions
    assert run.state.phase is ReconfigurationPhase.STEADY


def test_standby_jobs_are_launched_and_a_refusal_waits() -> None:
    config = job()
    config = replace(config, standby=replace(config.standby, max_jobs=3))
    run = Run(config=config)
    supply = CapacitySnapshot(START, (), (Headroom(0, "", 2),))
    assert Launch(2) in run.feed(CapacitySeen(run.now, supply))
    from liver_slurm.coordinator.core.io import LaunchRefused

    run.feed(LaunchRefused(run.now, "no"))
    assert Launch(2) not in run.feed(CapacitySeen(run.now, supply))
    run.now += 31
    assert Launch(2) in run.feed(CapacitySeen(run.now, supply))


def test_duplicates_late_and_impossible_messages_change_nothing_and_are_counted(run: Run) -> None:
    # LS-15
    grow(run)
    run.say(m.Prepared(worker="live-0", generation=1, ok=True))
    before = run.state
    for message in (
        m.Prepared(worker="live-0", generation=1, ok=True),
        m.Prepared(worker="live-0", generation=0, ok=False),
        m.Streamed(worker="live-0", generation=1, ok=True),
        m.Streamed(worker="live-0", generation=0, ok=True),
        m.WorldEntered(worker="live-0", generation=1, step=0, time=0.0),
        m.BoundaryVote(worker="live-0", boundary=99, step=1, accepted=True, current_step=0),
        m.Finished(worker="live-0", step=3),
    ):
        actions = run.say(message)
        assert not actions
    run.say(m.Heartbeat(worker="nobody", generation=0, step=0, step_seconds=0.0, warm=True))
    run.say(m.Leaving(worker="live-0", reason="forged"), peer=b"another peer")
    assert replace(run.state, rejected={}) == replace(before, rejected={}, now=run.state.now)
    assert sum(run.state.rejected.values()) == 9


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


def test_finishing(run: Run) -> None:
    grow(run)
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


def test_cancelling_waits_for_nobody_for_ever(run: Run) -> None:
    run.feed(StopAsked(run.now, "cancelled by SIGTERM"))
    assert run.state.lifecycle.outcome == (3, "cancelled by SIGTERM")
    run.tick(10.1)
    assert run.actions[-1] == Finish(3, "cancelled by SIGTERM")


def test_a_scheduled_resize_holds_training_until_it_is_prepared(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp2", at_step=5))
    held = run.state.barriers.cutover
    assert held is not None
    assert held.step == 5
    run.agree()
    assert not run.sent(m.ConfirmBoundary)
    run.register("standby-a")
    run.register("standby-b")
    run.tick()
    assert run.state.world.attempt is not None, "a request does not wait for the settling time"
    run.prepare_all()
    assert len(run.sent(m.ConfirmBoundary)) == 4
    run.stream_all()
    assert run.live.step == 5


def stand(run: Run) -> None:
    """The new world's members are held before their first step: they say by a heartbeat that they are in it."""
    live = run.live
    for name in live.members:
        run.say(m.Heartbeat(worker=name, generation=live.generation, step=live.step, step_seconds=0.0, warm=True))


def test_two_resizes_at_one_step_let_no_step_be_trained_between_them(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.say(m.ResizeRequest(layout="tp1pp1dp2", at_step=5))
    run.agree()
    run.prepare_all()
    before = len(run.actions)
    run.stream_all()
    kinds = [type(action.message) for action in run.actions[before:] if isinstance(action, Send)]
    assert kinds.index(m.Commit) > kinds.index(m.ProposeBoundary), "stopped before they hear that they may go on"
    assert (run.live.step, run.state.barriers.cutover and run.state.barriers.cutover.step) == (5, 5)
    run.agree()
    assert not run.events("reconfiguration_committed")

    run.now += 2.0
    stand(run)
    (first,) = run.events("reconfiguration_committed")
    assert first["to"] == "tp2pp1dp1"
    run.now += 3.0
    run.prepare_all()
    run.stream_all()
    run.enter_all()
    second = run.events("reconfiguration_committed")[1]
    assert (second["to"], second["cutover_step"], run.live.step) == ("tp1pp1dp2", 5, 5)
    assert second["pause_s"] == pytest.approx(3.0 + 0.5 - 0.01), "from where the first one's ended"
    assert run.state.resizes.goals == ()


def test_a_heartbeat_from_a_world_that_trains_is_no_word_that_it_was_entered(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.agree()
    run.prepare_all()
    run.stream_all()
    stand(run)
    assert run.state.phase is ReconfigurationPhase.CUTOVER
    run.enter_all()
    assert run.state.phase is ReconfigurationPhase.STEADY


@pytest.mark.parametrize("how", ["given up", "nothing to do"])
def test_training_still_waits_for_the_second_resize_at_a_step_if_the_first_comes_to_nothing(how: str) -> None:
    run = Run()
    wishes = ["tp2pp1dp1" if how == "given up" else "tp1pp1dp2", "tp1pp2dp1"]
    scheduled = [m.ResizeRequest(layout=layout, at_step=5) for layout in wishes]
    run.state, actions = client_requests.schedule(run.state, scheduled)
    run.actions += actions
    run.train("live-0", "live-1")
    run.agree()
    generation = 0
    while how == "given up" and not run.events("resize_given_up"):
        run.tick(5.0)
        for name in ("live-0", "live-1"):
            run.say(m.Heartbeat(worker=name, generation=0, step=5, step_seconds=0.1, warm=True))
        if run.state.world.attempt is not None and run.state.world.attempt.target.generation > generation:
            generation = run.state.world.attempt.target.generation
            run.say(m.Prepared(worker="live-0", generation=generation, ok=False, error="x"))
    run.tick()
    assert not run.sent(m.WithdrawBoundary)
    run.prepare_all()
    run.stream_all()
    assert (str(run.live.layout), run.live.step) == ("tp1pp2dp1", 5)


def test_scheduled_resizes_are_given_in_their_order(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.say(m.ResizeRequest(layout="tp1pp1dp2", at_step=4))
    _, reply = run.sent(m.Reply)[-1]
    assert not reply.ok
    assert "comes before the last scheduled resize" in reply.error


def test_an_aborted_attempt_keeps_training_held_for_a_scheduled_resize(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.agree()
    run.tick()
    run.say(m.Prepared(worker="live-0", generation=1, ok=False, error="x"))
    assert not run.sent(m.WithdrawBoundary)
    run.tick(1.1)
    run.prepare_all()
    run.stream_all()
    assert (run.live.step, run.live.generation) == (5, 2)


def test_a_request_that_fails_three_times_is_given_up(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    for generation in (1, 2, 3):
        run.tick(5.0)
        for name in ("live-0", "live-1"):
            run.say(m.Heartbeat(worker=name, generation=0, step=0, step_seconds=0.1, warm=True))
        run.say(m.Prepared(worker="live-0", generation=generation, ok=False, error="x"))
    assert run.events("resize_given_up")
    assert run.sent(m.WithdrawBoundary)
    assert run.state.resizes.goals == ()


def test_training_is_not_held_for_ever_for_workers_that_do_not_come(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp2", at_step=5))
    for _ in range(400):
        run.tick(1.0)
        for name in ("live-0", "live-1"):
            run.say(m.Heartbeat(worker=name, generation=0, step=5, step_seconds=0.1, warm=True))
    assert "waits for workers: 2 of 4" in run.events("resize_given_up")[0]["reason"]


def test_a_notice_goes_before_a_scheduled_resize(run: Run) -> None:
    grow(run)
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    for name in run.live.members:
        run.say(m.Heartbeat(worker=name, generation=1, step=1, step_seconds=1.0, warm=True))
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=50))
    assert run.state.barriers.cutover is not None
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now))
    assert run.sent(m.WithdrawBoundary), "or training would stand where the request holds it"
    run.prepare_all()
    run.agree()
    run.stream_all()
    assert run.state.barriers.cutover is not None, "held again, in the new world"
    assert (run.state.barriers.cutover.step, run.state.barriers.cutover.voters) == (50, frozenset(run.live.members))


def test_a_world_that_can_only_break_is_saved() -> None:
    config = job()
    run = Run(config=replace(config, elastic=replace(config.elastic, layouts=("tp1pp1dp2",))))
    run.train("live-0", "live-1")
    run.say(m.Notice(worker="live-1", reason="SIGTERM", time=run.now))
    run.tick()
    assert run.state.world.attempt is None
    assert {proposal.purpose for _, proposal in run.sent(m.ProposeBoundary)} == {"checkpoint"}


def test_a_checkpoint_on_request(run: Run) -> None:
    run.say(m.CheckpointRequest())
    (_, proposal), *_ = run.sent(m.ProposeBoundary)
    assert proposal.purpose == "checkpoint"
    for name in ("live-0", "live-1"):
        run.say(m.BoundaryVote(
            worker=name, boundary=proposal.boundary, step=proposal.step, accepted=True, current_step=0
        ))  # fmt: skip
    assert {name for name, _ in run.sent(m.ConfirmBoundary)} == {"live-0", "live-1"}
    run.say(m.CheckpointWritten(worker="live-0", step=proposal.step, ok=True, path="p"))
    assert run.events("checkpoint_written")


def test_a_commit_that_was_lost_with_a_connection_is_sent_again(run: Run) -> None:
    # LS-8, LS-15
    grow(run)
    run.prepare_all()
    run.agree()
    run.stream_all()
    beat = m.Heartbeat(worker="standby-a", generation=-1, step=0, step_seconds=0.0, warm=True)
    assert not run.sent(m.Commit, run.say(beat))
    run.now += 4.9
    run.say(beat)
    run.now += 0.2
    assert run.sent(m.Commit, run.say(beat))


# ---- a new coordinator ---------------------------------------------------------------------------------------------


def restarted(run: Run) -> Run:
    return Run(recover(run.records, settings(epoch=2), run.now + 1))


@pytest.mark.parametrize("heard", [(), ("live-0",), ("live-0", "live-1", "standby-a", "standby-b")])
def test_a_coordinator_that_died_between_the_record_and_the_commit(run: Run, heard: tuple[str, ...]) -> None:
    # LS-8
    grow(run)
    run.prepare_all()
    run.agree()
    run.stream_all()
    new = restarted(run)
    assert new.state.phase is RunPhase.RECOVERING
    for name in ("live-0", "live-1", "standby-a", "standby-b"):
        generation = 1 if name in heard else 0 if name.startswith("live") else -1
        actions = new.register(name, generation)
        assert bool(new.sent(m.Commit, actions)) == (name not in heard)
    assert new.state.phase is ReconfigurationPhase.CUTOVER
    new.enter_all()
    (event,) = new.events("reconfiguration_committed")
    assert event["to"] == "tp1pp1dp4"
    assert new.state.phase is ReconfigurationPhase.STEADY


@pytest.mark.parametrize("heard", [(), ("live-0",), ("live-0", "live-1")])
def test_a_coordinator_that_died_between_two_resizes_at_one_step(run: Run, heard: tuple[str, ...]) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.say(m.ResizeRequest(layout="tp1pp1dp2", at_step=5))
    run.agree()
    run.prepare_all()
    run.stream_all()
    new = restarted(run)
    for name in ("live-0", "live-1"):
        actions = new.register(name, 1 if name in heard else 0, 5)
        kinds = [type(action.message) for action in actions if isinstance(action, Send)]
        wanted = [m.Welcome, m.ProposeBoundary, m.WithdrawBoundary] + ([] if name in heard else [m.Commit])
        assert kinds == wanted, "held by this coordinator before it lets go what the last one held"
    new.agree()
    stand(new)
    new.prepare_all()
    new.stream_all()
    new.enter_all()
    assert (str(new.live.layout), new.live.step) == ("tp1pp1dp2", 5)
    assert len(new.events("reconfiguration_committed")) == 2


def test_a_coordinator_that_died_in_retire(run: Run) -> None:
    grow(run)
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    assert run.journaled(Entered)[-1].generation == 1
    new = restarted(run)
    for name in run.live.members:
        assert not new.sent(m.Commit, new.register(name, 1))
    assert (new.state.phase, new.live) == (ReconfigurationPhase.STEADY, run.live)


@pytest.mark.parametrize("phase", ["prepare", "boundary", "stream"])
def test_a_coordinator_that_died_before_the_record(run: Run, phase: str) -> None:
    grow(run)
    if phase != "prepare":
        run.prepare_all()
    if phase == "stream":
        run.agree()
    new = restarted(run)
    for name in ("live-0", "live-1", "standby-a", "standby-b"):
        actions = new.register(name, 0 if name.startswith("live") else -1)
        ((_, abort),) = new.sent(m.Abort, actions)
        assert abort.generation == 1
        assert bool(new.sent(m.WithdrawBoundary, actions)) == (phase == "boundary")
    assert new.events("recovered")
    assert new.live == run.live
    new.tick(0.3)
    assert new.state.world.attempt is not None
    assert new.state.world.attempt.target.generation == 2, "numbers are never used again"


def test_a_leaver_that_missed_the_commit_is_told(run: Run) -> None:
    run.say(m.ResizeRequest(workers=1))
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    new = restarted(run)
    new.register("live-0", 1)
    assert new.sent(m.Commit, new.register("live-1", 0))
    assert new.state.resizes.size_ceiling is not None


def test_requests_survive(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp2", at_step=90))
    new = restarted(run)
    for name in ("live-0", "live-1"):
        new.register(name, 0, 3)
    assert new.state.barriers.cutover is not None
    assert new.state.barriers.cutover.step == 90
    assert new.state.resizes.goals == run.state.resizes.goals


def test_a_member_that_died_while_the_run_finished_without_a_coordinator(run: Run) -> None:
    steps = run.state.settings.config.train.steps
    new = restarted(run)
    new.register("live-0", 0, steps)
    new.say(m.Finished(worker="live-0", step=steps))
    assert new.state.phase is RunPhase.FINISHING
    for _ in range(3):
        new.tick(2.0)
        new.say(m.Heartbeat(worker="live-0", generation=0, step=steps, step_seconds=0.1, warm=True))
    assert new.state.lifecycle.outcome is not None
    assert "live-1 of the live world did not come back" in new.state.reason


def test_all_members_finish_while_the_coordinator_comes_back(run: Run) -> None:
    steps = run.state.settings.config.train.steps
    new = restarted(run)
    for name in ("live-0", "live-1"):
        new.register(name, 0, steps)
        new.say(m.Finished(worker=name, step=steps))
    assert new.state.lifecycle.outcome == (0, f"all {steps} steps are trained")


def test_a_fresh_world_0_after_a_restart_has_a_fresh_number() -> None:
    # LS-10
    run = Run()
    run.register("live-0")
    run.register("live-1")
    new = restarted(run)
    assert new.state.phase is RunPhase.STARTING
    new.register("live-0")
    actions = new.register("live-1")
    assert {prepare.generation for _, prepare in new.sent(m.Prepare, actions)} == {1}
    assert not new.journaled(Committed)
