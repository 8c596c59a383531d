"""Agreeing on a step to stop at."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from coordinator_lab import job, with_validation
from coordinator_states import Run
from impatient import directives, passes

from liver_slurm.coordinator.core.io import Action, Journal, Send
from liver_slurm.coordinator.core.records import BoundaryClosed
from liver_slurm.coordinator.core.resize_queue import seconds_until
from liver_slurm.protocol import messages as m
from liver_slurm.worker.directives import Directives, Halted


def test_a_refused_boundary_moves_ahead(run: Run) -> None:
    run.begin_to_grow()
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
    assert (second.number, len(second.accepted)) == (first.number, 0)
    assert second.step > first.step + 3
    run.say(m.BoundaryVote(worker="live-0", boundary=first.number, step=first.step, accepted=True, current_step=0))
    assert run.state.barriers.cutover == second, "a vote on the old step is late"
    assert run.state.rejected["late"] == 1


def test_a_boundary_is_over_before_its_members_hear_so(run: Run) -> None:
    """Else a coordinator that dies between the two takes it for open, when they have trained on."""
    run.say(m.ResizeRequest(layout="tp2pp1dp1", at_step=50))
    actions = run.say(m.Finished(worker="live-0", step=run.state.settings.config.train.steps))
    kinds = [
        type(one.message if isinstance(one, Send) else one.record) for one in actions if isinstance(one, Send | Journal)
    ]
    assert kinds.index(BoundaryClosed) < kinds.index(m.WithdrawBoundary)


def test_a_proposal_leaves_time_for_the_message(run: Run) -> None:
    for name in run.live.members:
        run.say(m.Heartbeat(worker=name, generation=0, step=100, step_seconds=0.01, warm=True))
    run.begin_to_grow()  # 0.3 s, 30 steps later
    run.prepare_all()
    assert run.state.barriers.cutover is not None
    assert run.state.barriers.cutover.step >= 100 + 30 + 15


def test_a_validation_is_stopped_where_it_stands() -> None:
    """Training cannot run past a boundary while it stands for one; what is left of it counts for later steps."""
    run = Run(config=with_validation(job()))
    run.train("live-0", "live-1")
    for name in run.live.members:
        run.say(m.Heartbeat(worker=name, generation=0, step=100, step_seconds=0.01, warm=True, validating=(64, 30.0)))
    assert run.state.validating == (64, 30.0)
    assert seconds_until(run.state, 100) == 0.0
    assert seconds_until(run.state, 102) == pytest.approx(30.02)
    run.begin_to_grow()
    run.prepare_all()
    assert run.state.barriers.cutover is not None
    assert run.state.barriers.cutover.step == 100
    for name in run.live.members:
        run.say(m.Heartbeat(worker=name, generation=0, step=101, step_seconds=0.01, warm=True))
    assert run.state.validating is None


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


# ---- a checkpoint's boundary ends, whatever becomes of its world ----------------------------------------------------

LIVE = ("live-0", "live-1")
ALL = (*LIVE, "standby-a", "standby-b")


def ask_for_checkpoint(run: Run) -> m.ProposeBoundary:
    """Have a checkpoint proposed."""
    run.say(m.CheckpointRequest())
    proposal: m.ProposeBoundary = run.sent(m.ProposeBoundary)[-1][1]
    assert proposal.purpose == "checkpoint"
    return proposal


def accept(run: Run, proposal: m.ProposeBoundary, *names: str) -> list[Action]:
    """These members can stop there."""
    before = len(run.actions)
    for name in names:
        run.say(m.BoundaryVote(
            worker=name, boundary=proposal.boundary, step=proposal.step, accepted=True, current_step=0
        ))  # fmt: skip
    return run.actions[before:]


def refuse(run: Run, proposal: m.ProposeBoundary, name: str, at: int) -> m.ProposeBoundary:
    """A member is beyond it already; returns the newest proposal."""
    run.say(m.BoundaryVote(
        worker=name, boundary=proposal.boundary, step=proposal.step, accepted=False, current_step=at
    ))  # fmt: skip
    newest: m.ProposeBoundary = run.sent(m.ProposeBoundary)[-1][1]
    return newest


def checkpoint_behind_a_resize(run: Run, agreed: bool) -> m.ProposeBoundary:
    """A checkpoint is proposed or agreed on for a step behind the one that a resize is scheduled for later."""
    proposal = refuse(run, ask_for_checkpoint(run), "live-1", at=8)
    accept(run, proposal, *(LIVE if agreed else LIVE[:1]))
    run.register("standby-a")
    run.register("standby-b")
    run.say(m.ResizeRequest(layout="tp2pp1dp2", at_step=5))
    held = run.state.barriers.cutover
    assert held is not None
    assert held.step == 5 < proposal.step
    run.tick()
    run.prepare_all()
    run.agree()
    return proposal


def mailboxes(
    names: Sequence[str], actions: list[Action], lost: type[m.Message] | None = None
) -> dict[str, Directives]:
    """What the training threads of these workers find when they enter a world with 5 steps completed."""
    boxes = {name: directives() for name in names}
    for action in actions:
        if not isinstance(action, Send) or action.peer.decode() not in boxes or isinstance(action.message, lost or ()):
            continue
        box, message = boxes[action.peer.decode()], action.message
        if isinstance(message, m.ProposeBoundary):
            box.propose(message)
        elif isinstance(message, m.ConfirmBoundary):
            box.confirm(message)
            if message.purpose == "cutover":
                box.start_at(message.step, message.generation)
                box.at_boundary(message.step)
        elif isinstance(message, m.WithdrawBoundary):
            box.withdraw(message.boundary)
        elif isinstance(message, m.Commit):
            box.decide(message)
            box.start_at(message.step, message.generation)
    return boxes


@pytest.mark.parametrize("agreed", [False, True])
def test_a_commit_takes_back_a_checkpoint_that_lies_behind_it(run: Run, agreed: bool) -> None:
    proposal = checkpoint_behind_a_resize(run, agreed)
    before = len(run.actions)
    run.stream_all()
    sent = [(action.peer.decode(), type(action.message)) for action in run.actions[before:] if isinstance(action, Send)]
    assert [name for name, kind in sent if kind is m.WithdrawBoundary] == list(LIVE)
    kinds = [kind for _, kind in sent]
    assert kinds.index(m.WithdrawBoundary) < kinds.index(m.Commit)
    assert run.state.barriers.checkpoint is None
    assert run.state.barriers.unclosed == frozenset()
    run.enter_all()
    again = [(name, one) for name, one in run.sent(m.ProposeBoundary) if one.boundary > proposal.boundary + 1]
    assert sorted(name for name, _ in again) == sorted(ALL), "the new world's members are asked for it"
    accept(run, again[0][1], *ALL)
    confirmed = [name for name, one in run.sent(m.ConfirmBoundary) if one.boundary == again[0][1].boundary]
    assert sorted(confirmed) == sorted(ALL)


@pytest.mark.parametrize("agreed", [False, True])
@pytest.mark.parametrize("lost", [None, m.WithdrawBoundary])
def test_nobody_stands_where_the_world_before_had_a_checkpoint(
    run: Run, agreed: bool, lost: type[m.Message] | None
) -> None:
    # LS-15
    proposal = checkpoint_behind_a_resize(run, agreed)
    run.stream_all()
    boxes = mailboxes(ALL, run.actions, lost)
    for step in range(5, proposal.step + 2):
        assert [name for name, box in boxes.items() if not passes(box, step)] == [], f"at step {step}"


def test_a_checkpoint_that_is_agreed_on_comes_before_a_cutover_that_can_wait(run: Run) -> None:
    proposal = refuse(run, ask_for_checkpoint(run), "live-1", at=8)
    accept(run, proposal, *LIVE)
    run.begin_to_grow()
    run.prepare_all()
    held = run.state.barriers.cutover
    assert held is not None
    assert held.step > proposal.step


@pytest.mark.parametrize("committed", [False, True])
def test_a_checkpoint_that_moves_behind_a_cutover_waits_for_it(run: Run, committed: bool) -> None:
    proposal = ask_for_checkpoint(run)
    run.begin_to_grow()
    run.prepare_all()
    held = run.state.barriers.cutover
    assert held is not None
    before = len(run.actions)
    refuse(run, proposal, "live-1", at=held.step)
    withdrawn = [one.boundary for _, one in run.sent(m.WithdrawBoundary, run.actions[before:])]
    assert withdrawn == [proposal.boundary] * 2
    assert run.state.barriers.checkpoint is None
    run.agree()
    if committed:
        run.stream_all()
        run.enter_all()
    else:
        run.say(m.Streamed(worker="standby-a", generation=1, ok=False, error="no"))
    again = run.state.barriers.checkpoint
    assert again is not None
    assert again.voters == set(run.live.members) == set(ALL if committed else LIVE)


@pytest.mark.parametrize("killed", ["before the word", "before the record"])
def test_a_coordinator_that_takes_over_leaves_no_checkpoint_open(run: Run, killed: str) -> None:
    proposal = checkpoint_behind_a_resize(run, agreed=False)
    if killed == "before the word":
        run.stream_all()
    last_words = (m.WithdrawBoundary, m.Commit)
    heard = [
        action for action in run.actions if not isinstance(action, Send) or not isinstance(action.message, last_words)
    ]
    new = run.restarted()
    for name in ALL:
        new.register(name, 0 if name in LIVE else -1, 5)
    told = mailboxes(LIVE, [*heard, *new.actions])
    for step in range(6, proposal.step + 1):
        assert [name for name, box in told.items() if not passes(box, step)] == [], f"at step {step}"
    again = new.state.barriers.checkpoint
    assert again is None if killed == "before the word" else again is not None and again.number > proposal.boundary
    assert new.state.barriers.checkpoint_wanted


def test_a_member_is_lost_while_a_checkpoint_is_agreed_on(run: Run) -> None:
    proposal = ask_for_checkpoint(run)
    accept(run, proposal, "live-0")
    run.say(m.Failed(worker="live-1", generation=0, step=0, error="no memory"))
    assert run.state.barriers.checkpoint is None
    assert run.state.barriers.checkpoint_wanted, "of the next world"
    assert [name for name, _ in run.sent(m.Halt)] == ["live-0"]
    box = Directives()
    box.start_at(0, 0)
    box.propose(proposal)
    box.halt(0)
    assert box.at_boundary(proposal.step) == Halted(), "who waits there does not wait on"


@pytest.mark.parametrize(("written", "again"), [(True, False), (False, True)])
def test_the_next_world_writes_a_checkpoint_that_is_not_written_yet(run: Run, written: bool, again: bool) -> None:
    proposal = ask_for_checkpoint(run)
    for name in LIVE:
        accept(run, proposal, name)
    for name in LIVE:
        run.say(m.Heartbeat(worker=name, generation=0, step=proposal.step + 50, step_seconds=0.1, warm=True))
    if written:
        run.say(m.CheckpointWritten(worker="live-0", step=proposal.step, ok=True, path="/c/s", seconds=1.0))
    run.say(m.Failed(worker="live-1", generation=0, step=proposal.step + 50, error="no memory"))
    assert run.state.barriers.checkpoint_wanted == again


def test_a_vote_that_is_lost_holds_training_for_a_while_only(run: Run) -> None:
    # LS-15
    proposal = ask_for_checkpoint(run)
    accept(run, proposal, "live-0")

    def stand(seconds: float) -> None:
        for name in LIVE:
            run.say(m.Heartbeat(worker=name, generation=0, step=proposal.step, step_seconds=1.0, warm=True))
        run.tick(seconds)

    patience = run.state.settings.config.job.lost_after
    for _ in range(2):
        stand(patience / 2)
    assert not run.sent(m.WithdrawBoundary), "training has stood there for less"
    for _ in range(2):
        stand(patience / 2)
    assert [name for name, _ in run.sent(m.WithdrawBoundary)] == list(LIVE)
    again = run.state.barriers.checkpoint
    assert again is not None
    assert (again.number, len(again.accepted)) == (proposal.boundary + 1, 0)
    assert again.step > proposal.step


def test_a_checkpoint_that_gives_way_is_not_proposed_again_and_again(run: Run) -> None:
    # LS-15: until a heartbeat came, each refusal was answered with a proposal of the same step, and two records
    run.say(m.ResizeRequest(layout="tp2pp1dp2", at_step=2))  # it waits for workers, and so does training
    run.say(m.CheckpointRequest())
    proposal = run.state.barriers.checkpoint
    assert proposal is not None
    assert proposal.step == 1
    before = len(run.actions)
    run.say(m.BoundaryVote(worker="live-1", boundary=proposal.number, step=1, accepted=False, current_step=1))
    again = [one for _, one in run.sent(m.ProposeBoundary, run.actions[before:]) if one.purpose == "checkpoint"]
    assert again == []
    assert run.state.barriers.checkpoint_wanted


@pytest.mark.parametrize("order", [("live-0", "live-1"), ("live-1", "live-0")])
def test_a_checkpoint_failed_for_the_reason_that_rank_0_has(order: tuple[str, str]) -> None:
    run = Run(workers=2)
    run.train("live-0", "live-1")
    why = {"live-0": "no space left on device", "live-1": "the folder is gone"}
    for name in order:
        run.say(m.CheckpointWritten(worker=name, step=5, ok=False, error=why[name]))
    assert run.state.barriers.save_error == why["live-0"]
    run.say(m.CheckpointWritten(worker="live-1", step=6, ok=False, error="another"))
    assert run.state.barriers.save_error == "another", "of the last checkpoint"
