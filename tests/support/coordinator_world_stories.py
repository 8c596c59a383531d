"""Stories of worlds: how they begin, grow and shrink, and how that is given up."""

from __future__ import annotations

from coordinator_stories import ALL, LIVE, four, growing, story, two
from transcript import Story

from liver_slurm.protocol import messages as m

# ---- beginnings ----------------------------------------------------------------------------------------------------


@story
def start() -> Story:
    """World 0 waits for all live workers to be warm; clients ask too early, and again."""
    run = Story(workers=3)
    run.register("live-10")
    run.register("standby-a")
    run.register("live-2", warm=False)
    run.register("live-1")
    run.ask(m.CheckpointRequest())
    run.ask(m.ResizeRequest(workers=2))
    run.tick(1.0)
    run.say(m.Heartbeat(worker="live-2", generation=-1, step=0, step_seconds=0.0, warm=True))
    run.prepare_all()
    run.enter_all()
    run.tick(0.3)
    run.ask(m.StatusRequest())
    return run


@story
def start_from_checkpoint() -> Story:
    """A resumed run begins at its checkpoint, and holds training for the resize that it was started with."""
    run = Story(checkpoint="/c/step-7", start_step=7, resize=("9:tp2pp1dp1",), automatic=False)
    run.register("live-0")
    run.register("live-1")
    run.prepare_all()
    run.enter_all()
    run.agree()
    run.change_over()
    return run


@story
def start_fails() -> Story:
    """One live worker cannot build world 0: the run has failed."""
    run = Story()
    run.register("live-0")
    run.register("live-1")
    run.prepare("live-0")
    run.prepare("live-1", ok=False, error="no memory")
    run.leave("live-0", "live-1")
    return run


@story
def start_in_vain() -> Story:
    """One of two live workers never comes."""
    run = Story(change={"job.lost_after": 400.0})
    run.register("live-0")
    for _ in range(3):
        run.tick(300.0)
        run.beat("live-0", generation=-1)
    run.tick(0.5)
    run.tick(10.5)
    return run


@story
def start_without_a_worker() -> Story:
    """A live worker's process ends before it has registered."""
    run = Story()
    run.register("live-0")
    run.ask(m.WorkerEnded(worker="live-1", reason="exit code 1"))
    run.ask(m.ResizeRequest(workers=2))
    run.leave("live-0")
    return run


@story
def start_with_lost_workers() -> Story:
    """Before training a lost standby is harmless, a lost live worker is not."""
    run = Story()
    run.register("live-0")
    for name in ("standby-a", "standby-b", "live-1"):
        run.register(name, warm=False)
    run.leave("standby-a", reason="SIGTERM")
    run.say(m.Failed(worker="standby-b", generation=-1, step=0, error="boom"))
    run.leave("live-1", reason="SIGTERM")
    run.leave("live-0")
    return run


# ---- grow and shrink -----------------------------------------------------------------------------------------------


@story
def grow() -> Story:
    """Two standbys come; after the settling time the world grows by both, with no state to go ahead."""
    run = two()
    run.register("standby-a")
    run.tick(0.1)
    run.register("standby-b", warm=False)
    run.beat("standby-b", generation=-1)
    run.tick(0.1)
    run.tick(0.15)
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    run.beat(*ALL, generation=1, step=3)
    return run


@story
def grow_overlap() -> Story:
    """State leaves some steps before the cutover: step time and wire are known."""
    run = two()
    run.beat(*LIVE, step=100, seconds=0.5)
    run.register("standby-a")
    run.register("standby-b")
    run.tick(0.3)
    run.prepare("live-0", "live-1", seconds=0.1)
    run.prepare("standby-a", "standby-b", seconds=0.2, state_bytes=9_000_000, rate=1e7)
    run.agree()
    run.stream_all()
    run.enter_all()
    return run


@story
def grow_pause() -> Story:
    """The same in mode pause: nothing leaves ahead."""
    run = two(change={"stream.mode": "pause"})
    run.beat(*LIVE, step=100, seconds=0.5)
    run.register("standby-a")
    run.register("standby-b")
    run.tick(0.3)
    run.prepare("live-0", "live-1")
    run.prepare("standby-a", "standby-b", state_bytes=9_000_000, rate=1e7)
    run.agree()
    run.stream_all()
    run.enter_all()
    return run


@story
def grow_beside_a_late_worker() -> Story:
    """One member cannot stop at the proposed step: another one, and votes on the first are late."""
    run = growing()
    run.prepare_all()
    first, _ = run.asked(m.ProposeBoundary, "boundary")
    run.vote("live-0", first)
    run.vote("live-1", first, refuse_at=4)
    run.vote("live-0", first)
    run.agree()
    run.stream_all()
    run.enter_all()
    return run


@story
def shrink_on_notice() -> Story:
    """A standby is preempted: the world shrinks before its deadline, it leaves with the commit."""
    run = four()
    run.beat(*ALL, generation=1, step=10)
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now, deadline=run.now + 9))
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.leave("standby-a", reason="not in the new world")
    run.enter_all()
    run.tick(0.3)
    return run


@story
def notices_during_a_reconfiguration() -> Story:
    """A joiner's notice ends it, and another one begins without; a leaver's that comes after the commit waits."""
    run = growing()
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now))
    run.leave("standby-a", reason="SIGTERM")
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.say(m.Notice(worker="standby-b", reason="SIGUSR1", time=run.now, deadline=run.now + 20))
    run.say(m.Notice(worker="standby-b", reason="SIGTERM", time=run.now, deadline=run.now + 30))
    run.enter_all()
    run.change_over()
    run.leave("standby-b")
    return run


@story
def notice_before_a_world_that_can_only_break() -> Story:
    """No layout is left without the leaver: a checkpoint is written, and the run fails when it has gone."""
    run = two(change={"elastic.layouts": ("tp1pp1dp2",)})
    run.say(m.Notice(worker="live-1", reason="SIGTERM", time=run.now, deadline=run.now + 9))
    run.tick(0.1)
    run.agree("checkpoint")
    run.say(m.CheckpointWritten(worker="live-0", step=1, ok=True, path="p", seconds=0.5, stall_seconds=0.1))
    run.leave("live-1", reason="SIGTERM")
    run.leave("live-0")
    return run


# ---- aborts --------------------------------------------------------------------------------------------------------


@story
def abort_in_prepare() -> Story:
    """A joiner is lost while it prepares; then the boundary is withdrawn when one is lost after all have prepared."""
    run = growing()
    run.prepare("live-0", "live-1")
    run.say(m.Failed(worker="standby-a", generation=-1, step=0, error="boom"))
    run.tick(0.3)
    run.prepare_all()
    run.leave("standby-b", reason="SIGTERM")
    return run


@story
def abort_by_a_no_vote() -> Story:
    """A joiner cannot prepare; the same target is tried again after a while that doubles."""
    run = growing()
    run.prepare("standby-a", ok=False, error="no memory")
    run.tick(0.9)
    run.tick(0.2)
    run.prepare("live-0")
    run.prepare("standby-a", ok=False, error="no memory")
    run.tick(1.9)
    run.tick(0.2)
    run.change_over()
    return run


@story
def abort_in_stream() -> Story:
    """One rank's digests differ, after others have voted yes: the old world trains on, and the next try succeeds."""
    run = growing()
    run.prepare_all()
    run.agree()
    run.stream_all(LIVE)
    run.say(m.Streamed(worker="standby-b", generation=1, ok=False, error="digest of x differs"))
    run.beat(*LIVE, step=3)
    run.tick(1.1)
    run.change_over()
    return run


@story
def abort_in_stream_by_loss() -> Story:
    """A member of the live world is lost in STREAM: so is the run."""
    run = growing()
    run.prepare_all()
    run.agree()
    run.stream_all(("live-0",))
    run.say(m.Failed(worker="live-1", generation=0, step=1, error="boom"))
    run.leave("live-0", "standby-a", "standby-b")
    return run


@story
def abort_by_deadline() -> Story:
    """A target world is not ready in time: in PREPARE, and for want of votes."""
    run = growing(change={"job.prepare_timeout": 4.0})
    run.prepare("live-0", "standby-a")
    for _ in range(2):
        run.tick(2.0)
        run.beat(*LIVE)
        run.beat("standby-a", "standby-b", generation=-1)
    run.tick(1.1)
    run.prepare_all()
    for _ in range(3):
        run.beat(*LIVE)
        run.beat("standby-a", "standby-b", generation=-1)
        run.tick(2.0)
    return run


@story
def abort_at_the_end_of_the_run() -> Story:
    """The cutover would come after the last step."""
    run = two(change={"train.steps": 6})
    run.beat(*LIVE, step=3)
    run.register("standby-a")
    run.tick(0.3)
    run.prepare_all()
    run.tick(0.1)
    return run


@story
def new_world_is_not_entered() -> Story:
    """After the commit record there is no way back: members that do not enter are lost to it."""
    run = growing(change={"job.prepare_timeout": 9.0})
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.say(m.WorldEntered(worker="live-0", generation=1, step=1, time=run.now))
    for _ in range(5):
        run.now += 2.0
        run.beat("live-0", "live-1", "standby-a", generation=1, step=1)
        run.beat("standby-b", generation=-1)
        run.tick()
    return run
