"""Inputs that change nothing, and inputs that come together."""

from __future__ import annotations

from dataclasses import replace

from coordinator_states import Run

from liver_slurm.coordinator.core.io import FromPeer, Send
from liver_slurm.coordinator.core.step import plan, step
from liver_slurm.protocol import messages as m


def test_rejected_messages_are_counted(run: Run) -> None:
    # LS-15
    run.begin_to_grow()
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


def test_what_comes_together_is_planned_for_once(run: Run) -> None:
    """Two nodes are wanted at once: there is one attempt at a world without both, and none without one of them."""
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    state, sent = run.state, []
    for name in ("standby-a", "standby-b"):
        notice = m.Notice(worker=name, reason="SIGTERM", time=run.now, deadline=run.now + 60)
        state, actions = step(state, FromPeer(run.now, state.membership.workers[name].peer, notice), planned=False)
        sent += [action.message for action in actions if isinstance(action, Send)]
        assert state.world.attempt is None
    assert not sent
    state, actions = plan(state, run.now + 1.0)
    orders = [action.message for action in actions if isinstance(action, Send)]
    assert len({order.generation for order in orders if isinstance(order, m.Prepare)}) == 1
    assert state.world.attempt is not None
    assert state.world.attempt.target.members == ("live-0", "live-1")
    assert state.now == run.now + 1.0
    assert plan(state, run.now + 2.0)[1] == [], "there is nothing more to do"
