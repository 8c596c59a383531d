"""A coordinator goes on from the journal, or the run begins anew."""

from __future__ import annotations

import pytest
from coordinator_states import START, Run, settings

from liver_slurm.coordinator.core.io import Release, Send
from liver_slurm.coordinator.core.records import (
    BegunAnew,
    Committed,
    Ended,
    Entered,
    EpochStarted,
    Record,
    last_outcome,
    why_restart,
    why_strange,
)
from liver_slurm.coordinator.core.state import RunPhase
from liver_slurm.coordinator.core.step import recover
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import JobStart

FIRST = EpochStarted(epoch=1, job_id="7", restarts=0)
ANEW = BegunAnew(checkpoint="/c/step-7", step=7, steps_lost=2, reason="job 7 was requeued")


@pytest.mark.parametrize("heard", [(), ("live-0",), ("live-0", "live-1", "standby-a", "standby-b")])
def test_death_between_record_and_commit(run: Run, heard: tuple[str, ...]) -> None:
    # LS-8
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()
    new = run.restarted()
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
def test_death_between_two_resizes_at_one_step(run: Run, heard: tuple[str, ...]) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.say(m.ResizeRequest(layout="tp1pp1dp2", at_step=5))
    run.agree()
    run.prepare_all()
    run.stream_all()
    new = run.restarted()
    for name in ("live-0", "live-1"):
        actions = new.register(name, 1 if name in heard else 0, 5)
        kinds = [type(action.message) for action in actions if isinstance(action, Send)]
        wanted = [m.Welcome, m.ProposeBoundary] + ([] if name in heard else [m.Commit])
        assert kinds == wanted, "held by this coordinator as by the last one"
    new.agree()
    new.stand()
    new.prepare_all()
    new.stream_all()
    new.enter_all()
    assert (str(new.live.layout), new.live.step) == ("tp1pp1dp2", 5)
    assert len(new.events("reconfiguration_committed")) == 2


def test_death_in_retire(run: Run) -> None:
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    assert run.journaled(Entered)[-1].generation == 1
    new = run.restarted()
    for name in run.live.members:
        assert not new.sent(m.Commit, new.register(name, 1))
    assert (new.state.phase, new.live) == (ReconfigurationPhase.STEADY, run.live)


@pytest.mark.parametrize("phase", ["prepare", "boundary", "stream"])
def test_death_before_the_record(run: Run, phase: str) -> None:
    run.begin_to_grow()
    if phase != "prepare":
        run.prepare_all()
    if phase == "stream":
        run.agree()
    new = run.restarted()
    for name in ("live-0", "live-1", "standby-a", "standby-b"):
        actions = new.register(name, 0 if name.startswith("live") else -1)
        ((_, abort),) = new.sent(m.Abort, actions)
        assert abort.generation == 1
        assert bool(new.sent(m.WithdrawBoundary, actions)) == (phase != "prepare")
    assert new.events("recovered")
    assert new.live == run.live
    new.tick(0.3)
    assert new.state.world.attempt is not None
    assert new.state.world.attempt.target.generation == 2, "numbers are never used again"


def test_a_leaver_that_missed_the_commit(run: Run) -> None:
    run.say(m.ResizeRequest(workers=1))
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    new = run.restarted()
    new.register("live-0", 1)
    assert new.sent(m.Commit, new.register("live-1", 0))
    assert new.state.resizes.size_ceiling is not None


def test_requests_survive(run: Run) -> None:
    run.say(m.ResizeRequest(layout="tp2pp1dp2", at_step=90))
    new = run.restarted()
    for name in ("live-0", "live-1"):
        new.register(name, 0, 3)
    assert new.state.barriers.cutover is not None
    assert new.state.barriers.cutover.step == 90
    assert new.state.resizes.goals == run.state.resizes.goals


def test_another_world_0_has_another_number() -> None:
    # LS-10
    run = Run()
    run.register("live-0")
    run.register("live-1")
    new = run.restarted()
    assert new.state.phase is RunPhase.STARTING
    new.register("live-0")
    actions = new.register("live-1")
    assert {prepare.generation for _, prepare in new.sent(m.Prepare, actions)} == {1}
    assert not new.journaled(Committed)


# ---- a run that begins anew ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "start", "anew"),
    [
        ([], JobStart("7", 0), False),
        ([FIRST], JobStart("7", 0), False),
        ([FIRST], JobStart("7", 1), True),
        ([FIRST], JobStart("8", 0), False),
        ([FIRST], JobStart("", 0), False),
        ([FIRST, Ended(code=1, reason="lost")], JobStart("7", 1), True),
        ([FIRST, Ended(code=0, reason="done")], JobStart("7", 1), False),
        ([FIRST, Ended(code=3, reason="on request")], JobStart("7", 1), False),
        ([FIRST, Ended(code=1, reason="lost"), ANEW, EpochStarted(epoch=2, job_id="7", restarts=1)], JobStart("7", 1),
         False),
    ],
)  # fmt: skip
def test_who_begins_anew(records: list[Record], start: JobStart, anew: bool) -> None:
    assert (why_restart(records, start) is not None) is anew


def test_an_earlier_outcome_is_none() -> None:
    assert last_outcome([Ended(code=1, reason="lost"), ANEW]) is None
    assert last_outcome([ANEW, Ended(code=0, reason="done")]) == Ended(code=0, reason="done")


def test_the_next_world_loads_the_checkpoint(run: Run) -> None:
    state = recover([*run.records, ANEW], settings(epoch=2), START)
    assert (state.phase, state.world.live, state.generation) == (RunPhase.STARTING, None, -1)
    again = Run(state)
    again.register("live-0")
    again.register("live-1")
    assert {(order.generation, order.checkpoint) for _, order in again.sent(m.Prepare)} == {(1, "/c/step-7")}
    again.say(m.Prepared(worker="live-0", generation=1, ok=True))
    again.say(m.Prepared(worker="live-1", generation=1, ok=True))
    assert {(commit.generation, commit.step) for _, commit in again.sent(m.Commit)} == {(1, 7)}
    # A coordinator that is started again within the same start of the job goes on with that world.
    third = recover([*run.records, ANEW, *again.records], settings(epoch=3), START)
    assert (third.phase, third.generation, third.world.next_generation) == (RunPhase.RECOVERING, 1, 2)


def test_processes_of_the_lost_world(run: Run) -> None:
    again = Run(recover([*run.records, ANEW], settings(epoch=2, job_id="7", restarts=1), START))
    again.register("live-0", generation=0, steps=9, job_id="7", pid=1)
    again.register("live-1", job_id="7", restarts=0, pid=2)
    assert [name for name, _ in again.sent(m.Refused)] == ["live-0", "live-1"]
    assert again.state.membership.workers == {}
    again.say(m.Heartbeat(worker="live-0", generation=0, step=10, step_seconds=1.0, warm=True))
    again.say(m.Finished(worker="live-0", step=10))
    assert again.state.step == 7
    again.register("live-0", job_id="7", restarts=1, pid=3)
    again.register("live-1", job_id="7", restarts=1, pid=4)
    assert again.state.phase is ReconfigurationPhase.PREPARE


def test_standbys_of_the_lost_world(run: Run) -> None:
    again = Run(recover([*run.records, ANEW], settings(epoch=2), START))
    again.register("standby-a", generation=0, steps=9)
    again.register("standby-b")
    assert [action.job_id for action in again.actions if isinstance(action, Release)] == ["standby-a"]
    assert set(again.state.membership.workers) == {"standby-b"}


def test_a_standby_before_the_lost_world() -> None:
    run = Run()
    run.train("live-0", "live-1")
    run.register("standby-a", began=5)
    run.tick(0.3)
    run.prepare_all()
    run.agree()
    run.stream_all()
    assert "standby-a" in run.live.members
    again = Run(recover([*run.records, ANEW], settings(epoch=2), START))
    actions = again.register("standby-a", began=5)
    assert "generation 1 is lost" in again.sent(m.Refused, actions)[-1][1].reason
    assert Release("standby-a") in actions
    again.register("standby-a", began=6)
    assert set(again.state.membership.workers) == {"standby-a"}


def test_a_standby_before_the_lost_world_whose_process_is_unknown() -> None:
    run = Run()
    run.train("live-0", "live-1")
    run.register("standby-a")
    run.tick(0.3)
    run.prepare_all()
    run.agree()
    run.stream_all()
    again = Run(recover([*run.records, ANEW], settings(epoch=2), START))
    again.register("standby-a")
    beat = m.Heartbeat(worker="standby-a", generation=-1, step=0, step_seconds=0.0, warm=True, targets={1: "voted"})
    told = [type(one) for _, one in again.sent(m.Message, again.say(beat))]
    assert told == [m.Alive, m.Leave]


def test_a_coordinator_that_does_not_understand_the_workers_leaves_them_alone(run: Run) -> None:
    """After an upgrade in place; they train on, and write a checkpoint when their patience is over."""
    began = EpochStarted(epoch=1, protocol=3)
    trained = [began, *run.records]
    assert why_strange(trained, 3) is None
    told = why_strange(trained, 4)
    assert told is not None
    assert "the workers of this run speak protocol 3, this version of liver-slurm 4" in told
    assert why_strange([began], 4) is None, "there is no world yet"
    assert why_strange([*trained, ANEW], 4) is None, "its workers are gone"
    assert why_strange([EpochStarted(epoch=1), *run.records], 4) is None, "an earlier version did not say"
