"""Stories of ends: coordinators that die, workers that are lost, runs that are over."""

from __future__ import annotations

from coordinator_stories import ALL, LIVE, four, growing, story, two
from transcript import Story

from liver_slurm.coordinator.core.io import StopAsked
from liver_slurm.protocol import messages as m

# ---- the coordinator dies ------------------------------------------------------------------------------------------


@story
def crash_before_the_commit_record() -> Story:
    """All have streamed but one: the new coordinator tells all that the target world is given up, and tries again."""
    run = growing()
    run.prepare_all()
    run.agree()
    run.stream_all(("live-0", "live-1", "standby-a"))
    run.restart()
    for name in ALL:
        run.register(name, generation=0 if name in LIVE else -1, steps=1 if name in LIVE else 0)
    run.tick(0.3)
    run.change_over()
    return run


@story
def crash_with_an_open_boundary() -> Story:
    """The boundary was proposed and not confirmed: it is withdrawn."""
    run = growing()
    run.prepare_all()
    run.restart()
    for name in ALL:
        run.register(name, generation=0 if name in LIVE else -1)
    return run


@story
def crash_after_the_commit_record() -> Story:
    """One member has heard of the commit, three have not: all are in the new world in the end."""
    run = growing()
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.restart()
    run.register("live-0", generation=1, steps=1)
    run.register("live-1", generation=0, steps=1)
    run.tick(0.1)
    run.register("standby-a")
    run.register("standby-b")
    run.enter_all()
    return run


@story
def crash_after_all_have_entered() -> Story:
    """The new coordinator finds the world as it is; what it remembers of before is in the journal."""
    run = four()
    run.ask(m.ResizeRequest(layout="tp2pp1dp2", at_step=90))
    run.restart()
    for name in ALL:
        run.register(name, generation=1, steps=3)
    run.beat(*ALL, generation=1, step=4)
    return run


@story
def crash_between_two_resizes_at_one_step() -> Story:
    """Members that stand, and one that has not heard of the first commit: held before they are let go."""
    run = two()
    run.ask(m.ResizeRequest(layout="tp2pp1dp1", at_step=5))
    run.ask(m.ResizeRequest(layout="tp1pp1dp2", at_step=5))
    run.agree()
    run.prepare_all()
    run.stream_all()
    run.restart()
    run.register("live-0", generation=1, steps=5)
    run.register("live-1", generation=0, steps=5)
    run.agree()
    run.beat(*LIVE, generation=1, step=5)
    run.prepare_all()
    run.stream_all()
    run.enter_all()
    return run


@story
def crash_before_world_0() -> Story:
    """World 0 begins again under a new number."""
    run = Story()
    run.register("live-0")
    run.register("live-1")
    run.prepare("live-0")
    run.restart()
    run.register("live-0")
    run.register("live-1")
    run.prepare_all()
    run.enter_all()
    return run


@story
def crash_and_a_member_that_does_not_come_back() -> Story:
    """The live world was broken while there was no coordinator."""
    run = two()
    run.restart()
    run.register("live-0", generation=0, steps=5)
    for _ in range(3):
        run.tick(2.0)
        run.beat("live-0", step=5)
    return run


# ---- lost workers --------------------------------------------------------------------------------------------------


@story
def failed_workers() -> Story:
    """A standby's failure is harmless, a live worker's is not."""
    run = two()
    run.register("standby-a")
    run.say(m.Failed(worker="standby-a", generation=-1, step=0, error="boom"))
    run.register("standby-b", job_id="9")
    run.ask(m.WorkerEnded(worker="standby-b", reason="signal 9"))
    run.say(m.Failed(worker="live-1", generation=0, step=3, error="boom"))
    run.beat("live-0", step=3)
    run.leave("live-0")
    return run


@story
def silent_worker() -> Story:
    """A live worker is not heard of any more."""
    run = two()
    for _ in range(3):
        run.tick(2.0)
        run.beat("live-0", step=5)
    run.leave("live-0")
    return run


@story
def another_process_takes_a_name() -> Story:
    """A worker's name is taken until the old process has been silent for long enough."""
    run = two(change={"job.lost_after": 20.0})
    run.register("standby-a")
    run.register("standby-a", pid=1)
    run.beat(*LIVE, after=21.0)
    run.register("standby-a", pid=1)
    return run


@story
def coordinator_stall() -> Story:
    """The coordinator itself stood still: nobody is lost for that, but a deadline is over."""
    run = growing()
    run.tick(1000.0)
    run.beat(*LIVE, step=4)
    run.beat("standby-a", "standby-b", generation=-1)
    run.tick(2.4)
    run.tick(2.4)
    run.tick(2.4)
    return run


# ---- ends ----------------------------------------------------------------------------------------------------------


@story
def finish_without_the_last_checkpoint() -> Story:
    """All steps are trained, and the checkpoint that was wanted then could not be written: that is no success."""
    run = two(change={"train.steps": 50})
    run.say(m.CheckpointWritten(worker="live-1", step=50, ok=False, error="OSError: no space"))
    run.say(m.Finished(worker="live-0", step=50))
    run.say(m.Finished(worker="live-1", step=50))
    run.leave("live-0")
    run.leave("live-1")
    return run


@story
def finish() -> Story:
    """The last step is trained while a world is being prepared."""
    run = growing(change={"train.steps": 50})
    run.say(m.Finished(worker="live-0", step=50))
    run.say(m.Finished(worker="live-0", step=50))
    run.ask(m.CheckpointRequest())
    run.say(m.Finished(worker="live-1", step=50))
    run.ask(m.ResizeRequest(workers=2))
    run.say(m.CheckpointWritten(worker="live-0", step=50, ok=True, path="p"))
    run.beat("live-0", step=50)
    run.leave(*ALL)
    run.tick(0.1)
    return run


@story
def cancel() -> Story:
    """On request, while training is to stop for a new world; one standby does not leave."""
    run = growing()
    run.prepare_all()
    run.ask(m.CancelRequest())
    run.ask(m.CancelRequest())
    run.register("standby-c")
    run.leave("live-0", "live-1", "standby-a", "standby-c")
    run.beat("standby-b", generation=-1, after=9.0)
    run.tick(1.1)
    return run


@story
def told_to_stop() -> Story:
    """The coordinator's process is told to end; workers are waited for a little."""
    run = two()
    run.feed(StopAsked(run.now, "cancelled by SIGTERM"))
    run.tick(5.0)
    run.tick(5.1)
    return run
