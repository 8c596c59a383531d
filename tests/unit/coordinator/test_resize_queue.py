"""Explicit requests: their order, and training that waits for them."""

from __future__ import annotations

import pytest
from coordinator_states import Run

from liver_slurm.coordinator.core import client_requests
from liver_slurm.coordinator.core.io import Interrupted, Send
from liver_slurm.coordinator.core.parts import ResizeQueue
from liver_slurm.coordinator.core.records import BegunAnew, RequestClosed, RequestTaken
from liver_slurm.protocol import messages as m


def test_a_scheduled_resize_holds_training(run: Run) -> None:
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


def test_a_scheduled_resize_keeps_its_step_when_it_fails_there(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.agree()
    run.prepare_all()
    before = len(run.actions)
    run.say(m.Streamed(worker="live-0", generation=1, ok=False, error="digests differ"))
    kinds = [type(action.message) for action in run.actions[before:] if isinstance(action, Send)]
    assert kinds.index(m.ProposeBoundary) < kinds.index(m.Abort), "who hears of the abort trains on"
    held = run.state.barriers.cutover
    assert held is not None
    assert (held.number, held.step, held.request, held.confirmed) == (1, 5, 0, False)
    run.agree()
    run.tick(2.0)
    run.prepare_all()
    run.stream_all()
    assert (str(run.live.layout), run.live.step) == ("tp2pp1dp1", 5)


def test_requests_are_in_their_order_when_a_job_has_its_nodes_again() -> None:
    queue = ResizeQueue()
    for number, at_step, give_back in ((0, 20, True), (1, -1, False), (2, 30, False)):
        taken = RequestTaken(number=number, layout="", workers=2, at_step=at_step, give_back=give_back)
        queue = queue.apply(taken)
    queue = queue.apply(RequestClosed(number=0, fulfilled=True))
    queue = queue.apply(BegunAnew(checkpoint="", step=0, steps_lost=0, reason="requeued"))
    assert [goal.number for goal in queue.goals] == [1, 0, 2]


def test_two_resizes_at_one_step(run: Run) -> None:
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
    run.stand()
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


@pytest.mark.parametrize("how", ["given up", "nothing to do"])
def test_the_second_resize_at_a_step_outlives_the_first(how: str) -> None:
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


def test_scheduled_resizes_come_in_order(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.say(m.ResizeRequest(layout="tp1pp1dp2", at_step=4))
    _, reply = run.sent(m.Reply)[-1]
    assert not reply.ok
    assert "comes before the last scheduled resize" in reply.error


def test_an_abort_keeps_training_held(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.agree()
    run.tick()
    run.say(m.Prepared(worker="live-0", generation=1, ok=False, error="x"))
    assert not run.sent(m.WithdrawBoundary)
    run.tick(1.1)
    run.prepare_all()
    run.stream_all()
    assert (run.live.step, run.live.generation) == (5, 2)


def test_three_failures_are_enough(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    for generation in (1, 2, 3):
        run.tick(5.0)
        for name in ("live-0", "live-1"):
            run.say(m.Heartbeat(worker=name, generation=0, step=0, step_seconds=0.1, warm=True))
        run.say(m.Prepared(worker="live-0", generation=generation, ok=False, error="x"))
    assert run.events("resize_given_up")
    assert run.sent(m.WithdrawBoundary)
    assert run.state.resizes.goals == ()


def test_training_is_not_held_for_ever(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp2", at_step=5))
    for _ in range(400):
        run.tick(1.0)
        for name in ("live-0", "live-1"):
            run.say(m.Heartbeat(worker=name, generation=0, step=5, step_seconds=0.1, warm=True))
    assert "waits for workers: 2 of 4" in run.events("resize_given_up")[0]["reason"]


def test_a_notice_goes_first(run: Run) -> None:
    run.begin_to_grow()
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


def test_no_resize_comes_before_the_last_checkpoint(run: Run) -> None:
    for name in run.live.members:
        run.say(m.Heartbeat(worker=name, generation=0, step=100, step_seconds=0.2, warm=True))
    run.feed(Interrupted(run.now, "job 7 was requeued", requeued=True))
    before = run.state.barriers
    assert before.checkpoint is not None
    ((_, answer),) = run.sent(m.Reply, run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=before.checkpoint.step)))
    assert (answer.ok, answer.error) == (False, "no world is begun any more: job 7 was requeued")
    assert run.state.barriers == before
