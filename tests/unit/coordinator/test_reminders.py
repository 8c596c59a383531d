"""Each message of the protocol, lost: the next heartbeats show it, and nobody waits."""

from __future__ import annotations

from typing import Any

from coordinator_states import Run

from liver_slurm.coordinator.core.reminders import PATIENCE
from liver_slurm.coordinator.core.state import RunPhase
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
from liver_slurm.protocol import messages as m

# LS-15
LIVE = ("live-0", "live-1")
ALL = (*LIVE, "standby-a", "standby-b")


def beat(run: Run, name: str, step: int = 0, **fields: Any) -> list[Any]:
    """A worker's heartbeat, some time after whatever came before; returns what it is told."""
    run.now += PATIENCE + 0.1
    told = {"generation": -1 if name.startswith("standby") else 0, "targets": {}, **fields}
    actions = run.say(m.Heartbeat(worker=name, step=step, step_seconds=1.0, warm=True, **told))
    return [message for to, message in run.sent(m.Message, actions) if to == name and not isinstance(message, m.Alive)]


def test_a_lost_prepare_and_a_lost_answer(run: Run) -> None:
    run.begin_to_grow()
    (again,) = beat(run, "standby-a")
    assert isinstance(again, m.Prepare)
    assert ("standby-a", again) in run.sent(m.Prepare)[:-1], "word for word"
    assert beat(run, "standby-a", targets={1: "preparing"}) == [], "it is at it"
    assert beat(run, "standby-a", targets={1: "prepared"}) == [again], "it has answered, and answers again"
    run.say(m.Prepared(worker="standby-a", generation=1, ok=True))
    assert beat(run, "standby-a", targets={1: "prepared"}) == []


def test_a_worker_of_an_earlier_version_is_not_reminded(run: Run) -> None:
    run.begin_to_grow()
    assert beat(run, "standby-a", targets=None) == []


def test_a_lost_proposal_and_a_lost_vote(run: Run) -> None:
    run.begin_to_grow()
    run.prepare_all()
    held = run.state.barriers.cutover
    assert held is not None
    (again,) = beat(run, "live-0", targets={1: "prepared"})
    assert isinstance(again, m.ProposeBoundary)
    holds = {held.number: (held.step, False)}
    assert beat(run, "live-0", targets={1: "prepared"}, boundaries=holds) == [again], "its vote has not come"
    run.say(m.BoundaryVote(worker="live-0", boundary=held.number, step=held.step, accepted=True, current_step=0))
    assert beat(run, "live-0", targets={1: "prepared"}, boundaries=holds) == []
    assert beat(run, "live-0", targets={1: "prepared"}) == [again], "it accepted what it no longer holds"


def test_a_lost_confirmation_and_a_lost_vote_on_the_commit(run: Run) -> None:
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    (_, final), *_ = run.sent(m.ConfirmBoundary)
    assert beat(run, "standby-a", targets={1: "prepared"}) == [final]
    assert beat(run, "live-0", targets={1: "prepared"}, boundaries={final.boundary: (final.step, False)}) == [final]
    assert beat(run, "live-0", targets={1: "prepared"}, boundaries={final.boundary: (final.step, True)}) == []
    assert beat(run, "live-0", targets={1: "streaming"}) == []
    assert beat(run, "live-0", targets={1: "voted"}) == [final], "its vote has not come"


def commit_to_all(run: Run) -> None:
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()


def test_a_lost_commit_and_a_lost_word_of_entering(run: Run) -> None:
    commit_to_all(run)
    (commit,) = beat(run, "live-0", step=1, targets={1: "voted"})
    assert isinstance(commit, m.Commit)
    assert beat(run, "live-1", step=2, generation=1) == [commit], "it is in the world, and says again since when"


def test_a_member_of_an_earlier_version_whose_word_of_entering_is_lost(run: Run) -> None:
    commit_to_all(run)
    for name in ALL:
        beat(run, name, step=run.live.step + 1, generation=1, targets=None)
    assert run.state.phase is ReconfigurationPhase.STEADY


def test_a_lost_abort(run: Run) -> None:
    run.begin_to_grow()
    run.say(m.Prepared(worker="standby-a", generation=1, ok=False, error="x"))
    aborts = [one for one in beat(run, "live-0", targets={1: "voted"}) if isinstance(one, m.Abort)]
    assert [abort.generation for abort in aborts] == [1]


def test_a_leaver_that_has_missed_the_commit_is_told_however_late(run: Run) -> None:
    run.say(m.ResizeRequest(workers=1))
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    assert run.state.phase is ReconfigurationPhase.STEADY
    (commit,) = beat(run, "live-1", targets={1: "voted"})
    assert (type(commit), commit.generation) == (m.Commit, 1)
    run.say(m.ResizeRequest(layout="tp1pp1dp2"))
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    (commit,) = beat(run, "live-1", generation=2, targets={1: "voted"})
    assert (type(commit), commit.generation) == (m.Commit, 1), "an abort would have it train on in a world that is over"


def test_one_that_stands_in_a_world_that_is_over_has_to_leave(run: Run) -> None:
    run.say(m.ResizeRequest(workers=1))
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    patience = run.state.settings.config.job.prepare_timeout
    assert beat(run, "live-1", step=3) == [], "it says so once more before it is out, or this comes late"
    run.now += patience
    assert beat(run, "live-1", generation=-1) == []
    assert beat(run, "live-1", step=3) == [], "only without a break"
    run.now += patience / 2
    assert beat(run, "live-1", step=3) == []
    run.now += patience / 2
    (leave,) = beat(run, "live-1", step=3)
    assert (type(leave), leave.reason) == (m.Leave, "it stands in generation 0, which is over")
    for _ in range(2):
        again, halt = beat(run, "live-1", step=3)
        assert (type(again), type(halt), halt.generation) == (m.Leave, m.Halt, 0), "it may be in a collective"
    assert [type(one) for one in beat(run, "live-1", generation=-1)] == [m.Leave]
    assert run.state.steady


def test_one_of_an_earlier_version_is_not_left_behind(run: Run) -> None:
    run.say(m.ResizeRequest(workers=1))
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    for _ in range(2):
        run.now += run.state.settings.config.job.prepare_timeout
        assert beat(run, "live-1", step=3, targets=None) == []


def test_a_lost_withdrawal(run: Run) -> None:
    assert beat(run, "live-0", boundaries={7: (3, False)}) == [m.WithdrawBoundary(epoch=1, boundary=7)]


def test_a_lost_confirmation_of_a_checkpoint(run: Run) -> None:
    run.say(m.CheckpointRequest())
    (_, proposal), *_ = run.sent(m.ProposeBoundary)
    for name in LIVE:
        run.say(m.BoundaryVote(
            worker=name, boundary=proposal.boundary, step=proposal.step, accepted=True, current_step=0
        ))  # fmt: skip
    waits = {proposal.boundary: (proposal.step, False)}
    (final,) = beat(run, "live-0", step=proposal.step, boundaries=waits)
    assert isinstance(final, m.ConfirmBoundary)
    assert beat(run, "live-0", step=proposal.step) == [], "it has taken it"
    new = run.restarted()
    for name in LIVE:
        new.register(name, 0, proposal.step)
    (final,) = beat(new, "live-1", step=proposal.step, boundaries=waits)
    assert (type(final), final.epoch) == (m.ConfirmBoundary, 2), "killed between the record and the word"


def test_a_wanted_checkpoint_outlives_the_coordinator(run: Run) -> None:
    run.say(m.CheckpointRequest())
    new = run.restarted()
    for name in LIVE:
        new.register(name, 0, 3)
    (_, proposal), *_ = new.sent(m.ProposeBoundary)
    assert proposal.purpose == "checkpoint"


def test_two_requests_make_one_checkpoint(run: Run) -> None:
    run.say(m.CheckpointRequest())
    (_, proposal), *_ = run.sent(m.ProposeBoundary)
    for name in LIVE:
        run.say(m.BoundaryVote(
            worker=name, boundary=proposal.boundary, step=proposal.step, accepted=True, current_step=0
        ))  # fmt: skip
    before = len(run.actions)
    run.say(m.CheckpointRequest())
    assert run.sent(m.ProposeBoundary, run.actions[before:]) == []
    assert not run.state.barriers.checkpoint_wanted, "the one that is agreed on is later than the request"
    for name in LIVE:
        beat(run, name, step=proposal.step + 1)
    run.say(m.CheckpointRequest())
    assert run.sent(m.ProposeBoundary, run.actions[before:]), "that one is over"


def test_a_lost_word_of_the_last_step() -> None:
    run = Run()
    run.train(*LIVE)
    steps = run.state.settings.config.train.steps
    for name in LIVE:
        beat(run, name, step=steps, finished=True)
    assert run.state.lifecycle.phase is RunPhase.FINISHED


def test_a_lost_notice_counts_once(run: Run) -> None:
    run.begin_to_grow()
    notice = m.Notice(worker="standby-a", reason="SIGTERM", time=run.now)
    beat(run, "standby-a", notice=notice)
    worker = run.state.membership.workers["standby-a"]
    assert worker.eviction is not None
    told = len(run.events("notice"))
    beat(run, "standby-a", notice=notice)
    assert len(run.events("notice")) == told


def test_one_that_was_taken_for_lost_comes_back(run: Run) -> None:
    run.register("standby-a")
    run.tick(1.0)
    patience = run.state.settings.config.job.lost_after
    for _ in range(12):
        for name in LIVE:
            run.say(m.Heartbeat(worker=name, generation=0, step=0, step_seconds=1.0, warm=True))
        run.tick(patience / 10)
    assert "standby-a" not in run.state.membership
    actions = run.say(m.Heartbeat(worker="standby-a", generation=-1, step=0, step_seconds=0.0, warm=True))
    assert run.sent(m.Alive, actions) == [("standby-a", m.Alive(epoch=1, known=False))]


def test_a_coordinator_that_stood_still_loses_nobody_whatever_it_reads_first(run: Run) -> None:
    run.tick(0.1)
    run.now += 40.0
    run.say(m.Heartbeat(worker="live-0", generation=0, step=3, step_seconds=1.0, warm=True))
    run.tick()
    assert run.state.phase is ReconfigurationPhase.STEADY
