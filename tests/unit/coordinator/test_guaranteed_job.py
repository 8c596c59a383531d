"""The guaranteed job's end: a successor takes over, or Slurm takes its nodes and a last checkpoint is written."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from coordinator_states import Run

from liver_slurm.base.errors import ExitCode
from liver_slurm.coordinator.core.guaranteed_job import ASK_AGAIN, Outlook, decide, lead, margin
from liver_slurm.coordinator.core.io import (
    Finish,
    GuaranteedJobSeen,
    Interrupted,
    StopAsked,
    SubmitSuccessor,
    SuccessorAnswer,
)
from liver_slurm.coordinator.core.records import Ended, EpochStarted, HandedOver, why_restart
from liver_slurm.coordinator.core.state import RunPhase
from liver_slurm.coordinator.core.step import recover
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import GuaranteedJob, JobStart, SuccessorJob

HOUR = 3600.0
PENDING, RUNNING = SuccessorJob("8", "PENDING", "Resources"), SuccessorJob("8", "RUNNING")

# ---- the decision --------------------------------------------------------------------------------------------------


def outlook(left: float, successor: SuccessorJob | None = None, limit: float = 24 * HOUR, **changes: Any) -> Outlook:
    fields: dict[str, Any] = {
        "now": 1000.0,
        "job": GuaranteedJob(1000.0 + left, limit, successor),
        "lead": None,
        "save_s": 20.0,
        "remaining_s": None,
        "tries": 0,
        "refused": "",
        "ask_again": math.inf,
        "submitting": False,
        "joined": 0,
        "wanted": 2,
    }
    return Outlook(**{**fields, **changes})


@pytest.mark.parametrize(
    ("given", "decision", "word"),
    [
        (outlook(3 * HOUR), "stay", "10800 s until"),
        (outlook(2 * HOUR), "submit", "7200 s until"),
        (outlook(2 * HOUR, lead=HOUR), "stay", "7200 s until"),
        (outlook(2 * HOUR, remaining_s=HOUR), "stay", "the last step is 3600 s away"),
        (outlook(2 * HOUR, remaining_s=3 * HOUR), "submit", ""),
        (outlook(2 * HOUR, submitting=True), "stay", "no successor yet"),
        (outlook(HOUR, PENDING), "stay", "job 8 waits in the queue: Resources"),
        (outlook(HOUR, RUNNING, joined=1), "stay", "1 of 2 workers are ready"),
        (outlook(HOUR, RUNNING, joined=2), "hand over", "job 8"),
        (outlook(HOUR, tries=3), "stay", "3 successors have ended"),
        (outlook(HOUR, refused="QOSMaxSubmitJobPerUserLimit"), "stay", "QOSMax"),
        (outlook(HOUR, refused="Socket timed out", tries=1, ask_again=1000.0), "submit", "3600 s until"),
        (outlook(HOUR, refused="Socket timed out", tries=3, ask_again=1000.0), "stay", "Socket timed out"),
        # twice the checkpoint's 20 s, and 30 s
        (outlook(71, PENDING), "stay", "waits"),
        (outlook(70, PENDING), "save", "job 8 waits in the queue"),
        (outlook(70, RUNNING, joined=2), "save", "2 of 2"),
        (outlook(70, refused="no"), "save", "there is no successor: no"),
        (outlook(70, remaining_s=10.0), "stay", "the last step is 10 s away"),
    ],
)
def test_decisions(given: Outlook, decision: str, word: str) -> None:
    found, reason = decide(given)
    assert found == decision, reason
    assert word in reason


def test_without_a_limit() -> None:
    assert decide(replace(outlook(0), job=GuaranteedJob(None, None)))[0] == "stay"


@pytest.mark.parametrize("limit", [60.0, 180.0, HOUR, 24 * HOUR, 14 * 24 * HOUR])
@pytest.mark.parametrize("save", [None, 0.1, 60.0, 3600.0])
@pytest.mark.parametrize("wish", [None, 1.0])
def test_a_successor_has_time_to_take_over(limit: float, save: float | None, wish: float | None) -> None:
    changes = {"limit": limit, "save_s": save, "lead": wish}
    left = limit
    while decide(outlook(left, **changes))[0] == "stay":
        left *= 0.97
    assert decide(outlook(left, **changes))[0] == "submit"
    assert left > 1.5 * margin(limit, save)


def test_the_default_lead() -> None:
    assert lead(60) == 30
    assert lead(HOUR) == 600
    assert lead(None) == 600


# ---- the handover in the state machine -----------------------------------------------------------------------------


@pytest.fixture
def run() -> Run:
    """Two workers of job 7, whose time limit is an hour away, in one world."""
    one = Run(job_id="7")
    for name in ("live-0", "live-1"):
        one.register(name, job_id="7")
    for name in ("live-0", "live-1"):
        one.say(m.Prepared(worker=name, generation=0, ok=True))
    for name in ("live-0", "live-1"):
        one.say(m.WorldEntered(worker=name, generation=0, step=0, time=one.now))
    look(one, HOUR)
    return one


def look(run: Run, left: float, successor: SuccessorJob | None = None) -> None:
    run.feed(GuaranteedJobSeen(run.now, GuaranteedJob(run.now + left, 4 * HOUR, successor)))
    run.tick()


def beat(run: Run) -> None:
    for worker in list(run.state.membership.workers.values()):
        run.say(m.Heartbeat(worker=worker.name, generation=worker.generation, step=1, step_seconds=0.1, warm=True))


def successors(run: Run, count: int = 2) -> None:
    for number in range(count):
        run.register(f"live-8-{number}", job_id="8")
    run.tick(2.0)
    beat(run)
    run.tick()


def submitted(run: Run) -> list[Any]:
    return [action for action in run.actions if isinstance(action, SubmitSuccessor)]


def change_over(run: Run) -> None:
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    run.tick()


def test_a_successor_is_submitted_once(run: Run) -> None:
    assert not submitted(run)
    look(run, 1000.0)
    look(run, 1000.0)
    assert len(submitted(run)) == 1
    run.feed(SuccessorAnswer(run.now, job_id="8"))
    run.tick()
    look(run, 900.0, PENDING)
    assert len(submitted(run)) == 1
    # It is cancelled: another one.
    look(run, 800.0)
    assert run.events("successor_lost") == [{"generation": 0, "job_id": "8"}]
    assert len(submitted(run)) == 2


def test_the_world_moves(run: Run) -> None:
    look(run, 1000.0, RUNNING)
    successors(run, 1)
    assert run.state.world.attempt is None, "part of the successor is no reason to grow"
    successors(run, 2)
    attempt = run.state.world.attempt
    assert attempt is not None
    assert (attempt.cause, set(attempt.target.members)) == ("successor", {"live-8-0", "live-8-1"})
    change_over(run)
    assert {name for name, _ in run.sent(m.Leave)} == {"live-0", "live-1"}
    assert run.journaled(HandedOver) == [HandedOver(job_id="8")]
    assert run.state.phase is RunPhase.HANDED_OVER
    for name in ("live-0", "live-1"):
        run.say(m.Leaving(worker=name, reason="dismissed"))
    finish = next(action for action in run.actions if isinstance(action, Finish))
    assert (finish.code, finish.over, finish.successor) == (ExitCode.HANDED_OVER, False, "8")
    assert {name for name, _ in run.sent(m.Leave)} == {"live-0", "live-1"}
    assert not run.journaled(Ended)


def test_the_next_coordinator_goes_on(run: Run) -> None:
    look(run, 1000.0, RUNNING)
    successors(run)
    change_over(run)
    records = [EpochStarted(epoch=1, job_id="7"), *run.records]
    assert why_restart(records, JobStart("8")) is None
    settings = replace(run.state.settings, epoch=2, job_id="8")
    next_run = Run(recover(records, settings, run.now))
    for name in ("live-8-0", "live-8-1"):
        next_run.register(name, generation=1, job_id="8")
    next_run.register("live-0", generation=0, job_id="7")  # has not heard that it is to leave
    assert next_run.state.lifecycle.phase is RunPhase.TRAINING
    next_run.tick(5.0)
    assert next_run.state.world.pending is None, "no world with a worker of the old job"


def test_a_lost_successor(run: Run) -> None:
    look(run, 1000.0, RUNNING)
    successors(run)
    assert run.state.world.attempt is not None
    run.say(m.Failed(worker="live-8-0", generation=-1, step=0, error="node failed"))
    run.tick()
    assert run.state.world.attempt is None
    assert run.state.phase is ReconfigurationPhase.STEADY
    assert all(worker.eviction is None for worker in run.state.membership.workers.values())
    assert set(run.live.members) == {"live-0", "live-1"}
    assert len(run.events("notice_withdrawn")) == 2


def test_a_notice_during_a_handover(run: Run) -> None:
    run.register("standby-a", job_id="9")
    run.tick(2.0)
    beat(run)
    change_over(run)
    assert "standby-a" in run.live.members
    look(run, 1000.0, RUNNING)
    successors(run)
    attempt = run.state.world.attempt
    assert attempt is not None
    assert set(attempt.target.members) == {"live-8-0", "live-8-1", "standby-a"}
    run.prepare_all()
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now, deadline=run.now + 60.0))
    assert "standby-a will go away" in run.events("reconfiguration_aborted")[-1]["reason"]
    run.tick(2.0)
    attempt = run.state.world.attempt
    assert attempt is not None
    assert set(attempt.target.members) == {"live-8-0", "live-8-1"}
    change_over(run)
    assert run.journaled(HandedOver) == [HandedOver(job_id="8")]
    assert {name for name, _ in run.sent(m.Leave)} == {"live-0", "live-1", "standby-a"}


def test_a_checkpoint_that_the_move_displaces_holds_it_up_for_a_while_only(run: Run) -> None:
    run.say(m.CheckpointRequest())
    first = run.state.barriers.checkpoint
    assert first is not None
    look(run, 1000.0, RUNNING)
    successors(run)
    refusal = m.BoundaryVote(
        worker="live-1", boundary=first.number, step=first.step, accepted=False, current_step=first.step + 9
    )
    run.prepare_all()
    run.say(refusal)
    change_over(run)
    run.tick()
    assert not run.journaled(HandedOver), "the new world has yet to agree on it"
    again = run.state.barriers.checkpoint
    assert again is not None
    assert again.voters == {"live-8-0", "live-8-1"}
    for name in run.live.members:
        run.say(m.BoundaryVote(worker=name, boundary=again.number, step=again.step, accepted=True, current_step=0))
    run.tick()
    assert run.journaled(HandedOver) == [HandedOver(job_id="8")]


def test_cancelling_ends_a_successor(run: Run) -> None:
    look(run, 1000.0, PENDING)
    run.say(m.CancelRequest(), peer=b"client")
    for name in ("live-0", "live-1"):
        run.say(m.Leaving(worker=name, reason="told"))
    (finish,) = [action for action in run.actions if isinstance(action, Finish)]
    assert (finish.code, finish.over, finish.successor) == (3, True, "")


def test_no_successor_in_time(run: Run) -> None:
    look(run, 200.0, PENDING)
    proposal = run.state.barriers.checkpoint
    assert proposal is not None
    number, at = proposal.number, proposal.step
    for name in run.live.members:
        run.say(m.BoundaryVote(worker=name, boundary=number, step=at, accepted=True, current_step=0))
    run.say(m.CheckpointWritten(worker="live-0", step=proposal.step, ok=True, path="step-1", seconds=3.0))
    assert run.state.phase is RunPhase.INTERRUPTED
    assert not run.journaled(Ended)
    assert {name for name, _ in run.sent(m.Leave)} == {"live-0", "live-1"}
    for name in ("live-0", "live-1"):
        run.say(m.Leaving(worker=name, reason="told"))
    assert [action.successor for action in run.actions if isinstance(action, Finish)] == ["8"]


def test_a_successor_that_came_too_late(run: Run) -> None:
    look(run, 1000.0, RUNNING)
    successors(run, 1)
    look(run, 200.0, RUNNING)
    run.tick(196.0)
    assert run.state.phase is RunPhase.INTERRUPTED
    assert {name for name, _ in run.sent(m.Leave)} == {"live-0", "live-1"}


def written(run: Run, error: str = "") -> None:
    """The last checkpoint is written, or is not."""
    step = run.state.step
    run.say(m.CheckpointWritten(worker="live-0", step=step, ok=not error, error=error, path="" if error else "/c/s"))


def test_where_there_can_be_no_successor(run: Run) -> None:
    look(run, 1000.0)
    run.feed(SuccessorAnswer(run.now, error="Invalid qos"))
    assert "Invalid qos" in run.events("successor_refused")[0]["reason"]
    assert "another one is asked for in 60 s" in run.events("successor_refused")[0]["then"]
    look(run, 990.0)
    assert len(submitted(run)) == 1
    for tries in (2, 3, 3):
        run.now += ASK_AGAIN
        beat(run)
        look(run, 800.0)
        assert len(submitted(run)) == tries
        run.feed(SuccessorAnswer(run.now, error="Invalid qos"))
    look(run, 200.0)
    written(run)
    run.tick(196.0)
    assert [record.code for record in run.journaled(Ended)] == [1]
    assert run.events("run_ended")[0]["outcome"] == "stopped"
    assert "Invalid qos" in run.journaled(Ended)[0].reason
    assert "continue from the newest checkpoint: liver-slurm submit --resume" in run.journaled(Ended)[0].reason


def test_another_successor_is_asked_for_once_a_look_shows_none(run: Run) -> None:
    """Only sbatch's answer was lost, it may be."""
    look(run, 1000.0)
    run.feed(SuccessorAnswer(run.now, error="sbatch did not answer within 30 s"))
    run.now += 2 * ASK_AGAIN
    beat(run)
    run.tick()
    assert len(submitted(run)) == 1
    look(run, 800.0, PENDING)
    assert len(submitted(run)) == 1
    look(run, 790.0)
    assert len(submitted(run)) == 2


@pytest.mark.parametrize("before", [True, False])
def test_at_the_time_limit_with_a_disk_that_is_full(run: Run, before: bool) -> None:
    if before:
        written(run)
    look(run, 1000.0)
    run.feed(SuccessorAnswer(run.now, error="Invalid qos"))
    look(run, 200.0)
    for _ in range(200):
        run.tick(1.0)
        beat(run)
        if run.state.interruption.reason:
            break
    written(run, "No space left on device")
    (ended,) = run.journaled(Ended)
    assert "the last checkpoint could not be written: No space left on device" in ended.reason
    assert ("submit --resume" in ended.reason) == before
    assert ("there is no checkpoint to continue from" in ended.reason) != before


def test_a_coordinator_that_was_started_again_knows_of_earlier_checkpoints(run: Run) -> None:
    run.state = replace(run.state, settings=replace(run.state.settings, has_checkpoint=True))
    assert run.state.how_to_continue.endswith("submit --resume /runs/r")


def test_the_signal_of_the_limit(run: Run) -> None:
    look(run, 3.0, PENDING)
    run.feed(StopAsked(run.now, "cancelled by SIGTERM"))
    assert run.state.phase is RunPhase.INTERRUPTED
    assert not run.journaled(Ended)


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


def test_the_last_checkpoint_comes_though_training_is_held_for_a_resize(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=2))
    beat(run)
    run.tick(0.1)
    requeued(run)
    assert run.sent(m.WithdrawBoundary)
    assert run.state.barriers.checkpoint is not None


def test_a_loss_in_the_grace_time_does_not_end_the_run(run: Run) -> None:
    run.feed(Interrupted(run.now, "job 7 is being preempted", requeued=False))
    run.say(m.Failed(worker="live-1", generation=0, step=1, error="boom"))
    run.tick(1.0)
    assert not run.state.over
    assert "live-1 of the live world was lost (boom): job 7 is being preempted" in run.state.reason
    requeued(run)
    run.tick(1.0)
    assert run.state.phase is RunPhase.INTERRUPTED
    assert not run.journaled(Ended)


def test_the_time_limit_ends_a_run_that_never_finishes(run: Run) -> None:
    steps = run.state.settings.config.train.steps
    look(run, 1000.0)
    run.say(m.Finished(worker="live-0", step=steps))
    asked = len(submitted(run))
    look(run, 900.0)
    look(run, 250.0)
    assert len(submitted(run)) == asked, "nobody is to go on with a run whose last step is made"
    assert run.state.phase is RunPhase.FINISHING
    for _ in range(250):
        run.tick(1.0)
        beat(run)
    assert run.state.phase is RunPhase.STOPPED


@pytest.mark.parametrize("word", [True, False], ids=["one has finished", "nobody has said so yet"])
@pytest.mark.parametrize("taken", [True, False], ids=["requeued", "time limit"])
def test_a_run_whose_last_step_is_saved_as_its_job_ends_is_finished(run: Run, word: bool, taken: bool) -> None:
    steps = run.state.settings.config.train.steps
    if word:
        run.say(m.Finished(worker="live-1", step=steps))
    if taken:
        requeued(run)
    else:
        look(run, 200.0)
    run.say(m.CheckpointWritten(worker="live-0", step=steps, ok=True, path="/c/s", seconds=60.0))
    assert not run.state.over
    for name in ("live-0", "live-1"):
        run.say(m.Finished(worker=name, step=steps))
    assert run.state.phase is RunPhase.FINISHED
    assert [record.code for record in run.journaled(Ended)] == [0]


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
