"""Stories of the guaranteed job in Slurm: nodes that it gives back, requeueing, its time limit."""

from __future__ import annotations

from coordinator_stories import LIVE, story
from transcript import Story

from liver_slurm.config.schema import ComponentSection
from liver_slurm.coordinator.core.io import GivenBack, GuaranteedJobSeen, Interrupted, StopAsked, SuccessorAnswer
from liver_slurm.coordinator.core.records import BegunAnew
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import GuaranteedJob, SuccessorJob

# ---- nodes given back ----------------------------------------------------------------------------------------------


def hetjob(*nodes: int) -> Story:
    """Job 7 with components of so many nodes, a worker on each; all are in world 0."""
    parts = tuple(ComponentSection(nodes=count) for count in nodes)
    run = Story(workers=sum(nodes), job_id="7", heterogeneous=True, change={"live.component": parts})
    run.train(*(f"live-{number}" for number in range(sum(nodes))), job_id="7")
    return run


@story
def nodes_given_back() -> Story:
    """The world shrinks, workers leave, Slurm takes their nodes; a new coordinator knows."""
    run = hetjob(4)
    run.ask(m.ResizeRequest(workers=4, give_back=True))
    run.ask(m.ResizeRequest(workers=2, give_back=True))
    run.change_over()
    run.tick(0.1)
    run.leave("live-3")
    run.tick(0.1)
    run.leave("live-2")
    run.tick(0.1)
    run.feed(GivenBack(run.now + 1.0, 1, 2, ("n3", "n4"), again=True))
    run.restart()
    for name in LIVE:
        run.register(name, generation=1, steps=5, job_id="7")
    run.ask(m.ResizeRequest(workers=1, give_back=True))
    return run


@story
def nodes_that_slurm_does_not_take() -> Story:
    """Slurm refuses: said once, and that component goes only as a whole from then on."""
    run = hetjob(2, 1)
    run.ask(m.ResizeRequest(workers=1, give_back=True))
    run.change_over()
    run.tick(0.1)
    run.leave("live-1", "live-2")
    run.tick(0.1)
    run.feed(GivenBack(run.now, 1, 1, error="scontrol: no"))
    run.tick(0.1)
    run.feed(GivenBack(run.now, 2, 0, ("n3",)))
    run.tick(0.1)
    run.ask(m.ResizeRequest(workers=1, give_back=True))
    return run


@story
def nodes_asked_back_again() -> Story:
    """A component that could not be ended is tried again when it is asked for again."""
    run = hetjob(1, 1)
    run.ask(m.ResizeRequest(workers=1, give_back=True))
    run.change_over()
    run.tick(0.1)
    run.leave("live-1")
    run.tick(0.1)
    run.feed(GivenBack(run.now, 2, 0, error="scancel: no answer"))
    run.tick(0.1)
    run.ask(m.ResizeRequest(workers=1))
    run.tick(0.1)
    run.ask(m.ResizeRequest(workers=1, give_back=True))
    run.tick(0.1)
    return run


# ---- interruption --------------------------------------------------------------------------------------------------


@story
def requeued_and_begun_anew() -> Story:
    """The guaranteed job is preempted, then requeued: saved, left, and begun anew when it starts again."""
    run = Story(job_id="7")
    run.train(*LIVE, job_id="7")
    run.register("standby-a", job_id="9")
    run.beat(*LIVE, step=9)
    run.feed(Interrupted(run.now, "job 7 is being preempted", requeued=False))
    run.agree("checkpoint")
    run.say(m.CheckpointWritten(worker="live-0", step=5, ok=True, path="/c/step-5", seconds=1.0))
    run.feed(Interrupted(run.now, "job 7 was requeued", requeued=True))
    run.agree("checkpoint")
    run.say(m.CheckpointWritten(worker="live-0", step=12, ok=True, path="/c/step-12", seconds=1.0))
    run.beat("standby-a", generation=-1)
    run.leave(*LIVE)
    anew = BegunAnew(checkpoint="/c/step-12", step=12, steps_lost=3, reason="job 7 was requeued: start 2")
    run.restart(after=60.0, anew=anew, restarts=1)
    run.register("live-0", generation=0, steps=12, job_id="7")
    run.register("live-1", job_id="7", restarts=0)
    run.register("standby-b", generation=0, steps=12, job_id="8")
    run.register("standby-a", job_id="9")
    for number, name in enumerate(LIVE):
        run.register(name, job_id="7", restarts=1, pid=number + 1)
    run.prepare_all()
    run.enter_all()
    return run


@story
def requeued_without_time() -> Story:
    """The last checkpoint does not come in its time, and a worker is killed meanwhile, which is no failure."""
    run = Story(job_id="7")
    run.train(*LIVE, job_id="7")
    with run.quietly("standby-a comes, and a world with it is being prepared"):
        run.register("standby-a")
        run.tick(0.3)
    run.feed(Interrupted(run.now, "job 7 was requeued", requeued=True))
    run.feed(Interrupted(run.now, "job 7 was requeued", requeued=True))
    with run.quietly("20 seconds"):
        for _ in range(9):
            run.tick(2.2)
            run.beat(*LIVE, "standby-a")
    run.tick(0.3)
    run.say(m.Failed(worker="live-1", generation=0, step=3, error="killed"))
    run.tick(10.1)
    return run


@story
def requeued_and_killed() -> Story:
    """The workers are killed before anything is saved."""
    run = Story(job_id="7")
    run.train(*LIVE, job_id="7")
    run.feed(Interrupted(run.now, "job 7 was requeued", requeued=True))
    run.say(m.Failed(worker="live-1", generation=0, step=3, error="killed"))
    run.leave("live-0")
    return run


@story
def requeued_before_training() -> Story:
    """There is nothing to save yet."""
    run = Story(job_id="7")
    run.register("live-0", job_id="7")
    run.feed(Interrupted(run.now, "job 7 was requeued", requeued=True))
    run.leave("live-0")
    return run


# ---- the guaranteed job's time limit -------------------------------------------------------------------------------

DAY = 14400.0
PENDING, RUNNING = SuccessorJob("8", "PENDING", "Resources"), SuccessorJob("8", "RUNNING")


def job_seen(run: Story, left: float, successor: SuccessorJob | None = None, after: float = 0.0) -> None:
    """Slurm is asked about the guaranteed job."""
    run.now += after
    run.feed(GuaranteedJobSeen(run.now, GuaranteedJob(run.now + left, DAY, successor)))
    run.tick()


def of_job_7(**options: object) -> Story:
    """Job 7 trains."""
    run = Story(**{"job_id": "7", "change": {"job.lost_after": 100.0}, **options})  # type: ignore[arg-type]
    run.train(*LIVE, job_id="7")
    return run


@story
def handover() -> Story:
    """A successor job is submitted, lost, submitted again; the world moves to it, and its coordinator goes on."""
    run = of_job_7()
    job_seen(run, 3000.0)
    job_seen(run, 1000.0)
    run.feed(SuccessorAnswer(run.now, job_id="8"))
    job_seen(run, 990.0, PENDING, after=1.0)
    job_seen(run, 989.0, after=1.0)
    run.feed(SuccessorAnswer(run.now, job_id="8"))
    job_seen(run, 988.0, RUNNING, after=1.0)
    run.register("live-8-0", job_id="8")
    run.tick(1.0)
    run.register("live-8-1", job_id="8")
    run.tick(0.3)
    run.change_over()
    run.tick(0.1)
    run.register("standby-a")
    run.leave(*LIVE, reason="dismissed")
    run.restart(job_id="8")
    run.register("live-8-0", job_id="8", generation=1, steps=5)
    run.register("live-8-1", job_id="8", generation=1, steps=5)
    run.register("live-0", job_id="7", generation=0, steps=1)
    run.tick(2.0)
    return run


@story
def handover_after_a_reconfiguration() -> Story:
    """The successor is ready while the world grows: the move waits until that is over."""
    run = of_job_7()
    run.register("standby-a", job_id="9")
    run.tick(0.3)
    job_seen(run, 1000.0, RUNNING)
    run.register("live-8-0", job_id="8")
    run.register("live-8-1", job_id="8")
    run.tick(0.1)
    run.change_over()
    run.tick(0.1)
    return run


@story
def handover_that_is_lost() -> Story:
    """A worker of the successor is lost before the commit: everything is as before."""
    run = of_job_7()
    job_seen(run, 1000.0, RUNNING)
    run.register("live-8-0", job_id="8")
    run.register("live-8-1", job_id="8")
    run.tick(0.3)
    run.prepare("live-0")
    run.say(m.Failed(worker="live-8-0", generation=-1, step=0, error="node failed"))
    run.tick(0.1)
    return run


@story
def time_limit_with_a_successor_that_waits() -> Story:
    """A checkpoint is written before the limit; the successor goes on from it whenever it starts."""
    run = of_job_7()
    run.say(m.CheckpointWritten(worker="live-0", step=1, ok=True, path="p", seconds=20.0))
    job_seen(run, 75.0, PENDING)
    job_seen(run, 69.0, PENDING, after=6.0)
    run.agree("checkpoint")
    run.say(m.CheckpointWritten(worker="live-0", step=2, ok=True, path="p", seconds=20.0))
    run.leave(*LIVE)
    return run


@story
def time_limit_without_a_successor() -> Story:
    """None is to be had: a checkpoint is written, and the run stops; it can be resumed."""
    run = of_job_7()
    job_seen(run, 1000.0)
    run.feed(SuccessorAnswer(run.now, error="QOSMaxSubmitJobPerUserLimit"))
    run.beat(*LIVE, step=4, after=90.0)
    job_seen(run, 200.0)
    run.tick(64.0)
    run.beat(*LIVE, step=4, after=66.0)
    run.tick(65.5)
    run.leave(*LIVE)
    return run


@story
def time_limit_in_a_cutover() -> Story:
    """What is to be saved before the limit waits until the new world is entered."""
    run = of_job_7()
    with run.quietly("standby-a comes, and the world with it is committed"):
        run.register("standby-a")
        run.tick(0.3)
        run.prepare_all()
        run.agree()
        run.stream_all()
    job_seen(run, 200.0, PENDING)
    run.enter_all()
    run.tick(0.1)
    return run


@story
def time_limit_behind_the_last_step() -> Story:
    """The run is over sooner than its job: nothing is due; and a signal at the limit itself is no cancellation."""
    run = of_job_7(change={"train.steps": 100, "job.lost_after": 9999.0})
    run.beat(*LIVE, step=50, seconds=1.0)
    job_seen(run, 1000.0)
    job_seen(run, 4.0, PENDING, after=996.0)
    run.feed(StopAsked(run.now, "cancelled by SIGTERM"))
    run.leave(*LIVE)
    return run
