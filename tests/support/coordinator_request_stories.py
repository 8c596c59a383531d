"""Stories of requests and messages: resizes, checkpoints, and what is out of place."""

from __future__ import annotations

from coordinator_stories import ALL, LIVE, four, growing, story, two
from transcript import Story

from liver_slurm.protocol import messages as m

# ---- explicit resizes ----------------------------------------------------------------------------------------------


@story
def resize_now() -> Story:
    """Resizes that are refused, granted, already fulfilled, and in the way of a later one."""
    run = two(standby_workers=2)
    for wish in (
        m.ResizeRequest(),
        m.ResizeRequest(layout="tp2"),
        m.ResizeRequest(workers=-1),
        m.ResizeRequest(layout="tp3pp1dp1"),
        m.ResizeRequest(workers=9),
        m.ResizeRequest(workers=1, give_back=True),
        m.ResizeRequest(layout="tp1pp1dp2"),
        m.ResizeRequest(workers=4),
        m.ResizeRequest(workers=1),
    ):
        run.ask(wish)
    run.change_over()
    run.register("standby-a")
    run.tick(0.3)
    return run


@story
def resize_at_step() -> Story:
    """Training waits at the requested step until the workers have come and the world is prepared."""
    run = two()
    run.beat(*LIVE, step=2)
    run.ask(m.ResizeRequest(layout="tp2pp1dp2", at_step=2))
    run.ask(m.ResizeRequest(layout="tp2pp1dp2", at_step=5))
    run.ask(m.ResizeRequest(layout="tp1pp1dp2", at_step=4))
    run.agree()
    run.beat(*LIVE, step=5, after=0.3)
    run.tick()
    run.register("standby-a")
    run.register("standby-b")
    run.tick(0.1)
    run.change_over()
    return run


@story
def two_resizes_at_one_step() -> Story:
    """No step is trained between them: the second one's boundary comes before the first one's commit."""
    run = two()
    run.ask(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.ask(m.ResizeRequest(layout="tp1pp1dp2", at_step=5))
    run.agree()
    run.prepare_all()
    run.stream_all()
    run.agree()
    run.beat(*LIVE, generation=1, step=5, after=2.0)
    run.now += 3.0
    run.prepare_all()
    run.stream_all()
    run.enter_all()
    return run


@story
def notice_before_a_scheduled_resize() -> Story:
    """A notice goes first; the new world is held for the resize again."""
    run = four()
    run.beat(*ALL, generation=1, step=1, seconds=1.0)
    run.ask(m.ResizeRequest(layout="tp2pp1dp1", at_step=50))
    run.tick(1.0)
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now))
    run.change_over()
    return run


@story
def requests_in_their_order() -> Story:
    """Those for now come before those that are scheduled, each after the one that was asked for before it."""
    run = two()
    run.beat(*LIVE, step=4)
    run.ask(m.ResizeRequest(layout="tp2pp1dp1", at_step=50))
    run.ask(m.ResizeRequest(layout="tp1pp1dp2", at_step=60))
    run.ask(m.ResizeRequest(workers=1))
    run.ask(m.ResizeRequest(layout="tp1pp2dp1"))
    run.change_over()
    run.change_over()
    run.restart()
    for name in LIVE:
        run.register(name, generation=2, steps=8)
    return run


@story
def request_given_up_after_three_tries() -> Story:
    """A request for a step fails three times; training goes on."""
    run = two()
    run.ask(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.agree()
    for wait in (0.0, 1.1, 2.1):
        run.tick(wait)
        run.beat(*LIVE, step=5)
        run.prepare("live-0", ok=False, error="no memory")
    return run


@story
def request_that_waits_in_vain() -> Story:
    """Workers that a scheduled resize needs do not come: training does not stand for ever."""
    run = two(change={"job.prepare_timeout": 6.0})
    run.ask(m.ResizeRequest(layout="tp2pp1dp2", at_step=5))
    run.agree()
    for _ in range(3):
        run.tick(2.4)
        run.beat(*LIVE, step=5)
    run.tick(2.4)
    return run


# ---- checkpoints ---------------------------------------------------------------------------------------------------


@story
def checkpoint() -> Story:
    """One on request, at a boundary that one member cannot meet at first; then one that fails."""
    run = two()
    run.beat(*LIVE, step=4)
    run.ask(m.CheckpointRequest())
    proposal, _ = run.asked(m.ProposeBoundary, "boundary")
    run.vote("live-0", proposal)
    run.vote("live-1", proposal, refuse_at=8)
    run.agree("checkpoint")
    run.say(m.CheckpointWritten(worker="live-0", step=12, ok=True, path="p", seconds=2.0, stall_seconds=0.25))
    run.ask(m.CheckpointRequest())
    run.agree("checkpoint")
    run.say(m.CheckpointWritten(worker="live-1", step=20, ok=False, error="no space", seconds=1.0))
    return run


@story
def checkpoint_before_a_cutover() -> Story:
    """A cutover's boundary lies after that of a checkpoint; a checkpoint that is wanted behind it waits."""
    run = growing()
    run.prepare("live-0")
    run.ask(m.CheckpointRequest())
    run.prepare("live-1", "standby-a", "standby-b")
    run.agree()
    run.stream_all()
    run.enter_all()
    run.ask(m.CheckpointRequest())
    run.register("standby-c")
    run.register("standby-d")
    run.tick(0.3)
    run.prepare_all()
    run.agree("checkpoint")
    run.agree("cutover")
    run.stream_all()
    run.enter_all()
    return run


@story
def checkpoint_displaced_by_a_cutover() -> Story:
    """A refused checkpoint would come behind a cutover: it is taken back, and the new world is asked for it."""
    run = two()
    run.ask(m.CheckpointRequest())
    run.register("standby-a")
    run.register("standby-b")
    run.tick(0.3)
    run.prepare_all()
    proposal, _ = run.asked(m.ProposeBoundary, "boundary", purpose="checkpoint")
    run.vote("live-0", proposal)
    run.vote("live-1", proposal, refuse_at=1)
    run.agree("cutover")
    run.stream_all()
    run.enter_all()
    run.agree("checkpoint")
    run.ask(m.CheckpointRequest())
    run.tick(1.0)
    return run


@story
def checkpoint_whose_voter_has_left() -> Story:
    """As before, but a member leaves with the cutover: the vote of those that are left is enough."""
    run = four()
    run.ask(m.CheckpointRequest())
    proposal, _ = run.asked(m.ProposeBoundary, "boundary", purpose="checkpoint")
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now, deadline=run.now + 9))
    run.prepare_all()
    run.vote("live-0", proposal, refuse_at=2)
    run.change_over()
    run.leave("standby-a")
    for name in (*LIVE, "standby-b"):
        run.vote(name, run.asked(m.ProposeBoundary, "boundary", purpose="checkpoint")[0])
    run.ask(m.CheckpointRequest())
    run.tick(1.0)
    return run


@story
def checkpoint_agreed_on_behind_a_resize() -> Story:
    """A resize is scheduled ahead of a checkpoint that is final: with the commit the new world is asked for it."""
    run = two()
    run.ask(m.CheckpointRequest())
    run.vote("live-0", run.asked(m.ProposeBoundary, "boundary")[0], refuse_at=8)
    run.agree("checkpoint")
    run.ask(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.change_over()
    run.agree("checkpoint")
    return run


@story
def checkpoint_whose_vote_is_lost() -> Story:
    """Training stands at a checkpoint's boundary, as a vote was lost: after a while it is proposed again."""
    run = two()
    run.ask(m.CheckpointRequest())
    run.vote("live-0", run.asked(m.ProposeBoundary, "boundary")[0])
    for _ in range(3):
        run.beat(*LIVE, step=1, seconds=1.0)
        run.tick(3.0)
    run.agree("checkpoint")
    return run


@story
def checkpoint_while_training_is_held() -> Story:
    """Training stops for a resize sooner than a checkpoint could be agreed on: the resize comes first."""
    run = two()
    run.ask(m.ResizeRequest(layout="tp2pp1dp1", at_step=1))
    run.agree()
    run.ask(m.CheckpointRequest())
    run.change_over()
    run.tick(0.1)
    run.agree("checkpoint")
    return run


# ---- stray messages ------------------------------------------------------------------------------------------------


@story
def stray_messages() -> Story:
    """Duplicate, late and impossible messages change nothing and are counted; strangers are refused."""
    run = growing()
    run.prepare("live-0")
    for message in (
        m.Prepared(worker="live-0", generation=1, ok=True),
        m.Prepared(worker="live-0", generation=0, ok=False),
        m.Streamed(worker="live-0", generation=1, ok=True),
        m.Streamed(worker="live-0", generation=0, ok=True),
        m.WorldEntered(worker="live-0", generation=1, step=0, time=0.0),
        m.BoundaryVote(worker="live-0", boundary=99, step=1, accepted=True, current_step=0),
        m.Finished(worker="live-0", step=3),
        m.Heartbeat(worker="nobody", generation=0, step=0, step_seconds=0.0, warm=True),
    ):
        run.say(message)
    run.say(m.Leaving(worker="live-0", reason="forged"), peer=b"stranger")
    run.register("live-0", run_id="other")
    run.register("live-0", protocol=99)
    run.register("live-0", pid=1)
    run.register("live-0", generation=5)
    run.register("live-0", generation=0)
    run.prepare("live-1", "standby-a", "standby-b")
    proposal, _ = run.asked(m.ProposeBoundary, "boundary")
    run.vote("live-0", proposal)
    run.vote("live-0", proposal)
    run.vote("standby-a", proposal)
    run.vote("live-1", proposal)
    run.stream_all(("live-0", "live-0"))
    run.stream_all(("live-1", "standby-a", "standby-b"))
    run.say(m.WorldEntered(worker="live-0", generation=1, step=7, time=run.now))
    run.say(m.WorldEntered(worker="live-0", generation=1, step=1, time=run.now))
    run.enter_all()
    return run


@story
def commit_that_was_lost() -> Story:
    """A member's heartbeats say that it has not heard of the commit: after a while it is told again."""
    run = growing()
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.beat("standby-a", generation=-1)
    run.beat("standby-a", generation=-1, after=4.9)
    run.beat("standby-a", generation=-1, after=0.2)
    return run
