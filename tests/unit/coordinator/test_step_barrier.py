"""Agreeing on a step to stop at."""

from __future__ import annotations

from coordinator_states import Run

from liver_slurm.protocol import messages as m


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
    assert (second.number, second.accepted) == (first.number, frozenset())
    assert second.step > first.step + 3
    run.say(m.BoundaryVote(worker="live-0", boundary=first.number, step=first.step, accepted=True, current_step=0))
    assert run.state.barriers.cutover == second, "a vote on the old step is late"
    assert run.state.rejected["late"] == 1


def test_a_proposal_leaves_time_for_the_message(run: Run) -> None:
    for name in run.live.members:
        run.say(m.Heartbeat(worker=name, generation=0, step=100, step_seconds=0.01, warm=True))
    run.begin_to_grow()  # 0.3 s, 30 steps later
    run.prepare_all()
    assert run.state.barriers.cutover is not None
    assert run.state.barriers.cutover.step >= 100 + 30 + 15


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
