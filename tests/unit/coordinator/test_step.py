"""Inputs that change nothing."""

from __future__ import annotations

from dataclasses import replace

from coordinator_states import Run

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
