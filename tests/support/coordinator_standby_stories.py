"""Stories of standby jobs: started and ended, taken back with notice and without, suspended."""

from __future__ import annotations

from dataclasses import replace

from coordinator_stories import LIVE, story, two
from transcript import Story

from liver_slurm.config.schema import UnitSection
from liver_slurm.coordinator.core.io import Launched, LaunchRefused
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import EvictionNotice, Headroom, StandbyJob


def running(job_id: str, partition: str = "p", **changes: object) -> StandbyJob:
    """A standby job that runs."""
    return replace(StandbyJob(job_id, "running", (f"n{job_id}",), partition=partition), **changes)  # type: ignore[arg-type]


# ---- standby jobs --------------------------------------------------------------------------------------------------


@story
def standby_scaling() -> Story:
    """Standby jobs are started where there is room, not while the scheduler refuses, and ended when of no use."""
    run = two(standby_workers=4, change={"standby.partitions": ("p",), "standby.hold": 20.0, "job.lost_after": 100.0})
    run.look(room=(Headroom(0, "p", 2),))
    run.feed(LaunchRefused(run.now, "QOSMaxSubmitJobPerUserLimit"))
    run.look(room=(Headroom(0, "p", 2),), after=10.0)
    run.look(room=(Headroom(0, "p", 1),), after=20.5)
    run.feed(Launched(run.now, ("7", "8"), 0))
    run.look(StandbyJob("7", "pending", partition="p"), room=(Headroom(0, "p", 1),), after=1.0)
    run.look(running("7"), room=(Headroom(0, "p", 0),), after=1.0)
    run.register("standby-7-0", job_id="7")
    run.look(running("7"), StandbyJob("8", "pending", partition="p"), room=(Headroom(0, "p", 0),), after=1.0)
    run.look(running("7"), after=1.0, blind="slurmctld does not answer", queries=9)
    run.change_over()
    run.ask(m.ResizeRequest(workers=2))
    run.change_over()
    run.look(running("7"), StandbyJob("8", "pending", partition="p"), after=1.0)
    run.look(running("7"), after=20.5)
    run.leave("standby-7-0")
    run.look(after=1.0)
    return run


@story
def standby_units() -> Story:
    """Jobs of two sizes wait in the queue; one that waits in vain makes way."""
    units = (UnitSection(nodes_per_job=2, max_jobs=1), UnitSection(max_jobs=4))
    change = {"standby.partitions": ("p", "q"), "standby.max_jobs": 3, "standby.launch": "queue"}
    run = two(standby_workers=5, change={**change, "standby.unit": units, "elastic.max_workers": 5})
    run.look(room=(Headroom(0, "p", 0), Headroom(0, "q", 0), Headroom(1, "p", 1), Headroom(1, "q", 0)))
    waiting = [StandbyJob(str(number), "pending", partition="p", unit=0) for number in (7, 8, 9)]
    run.look(*waiting, room=(Headroom(0, "p", 0), Headroom(1, "q", 1)), after=2.0)
    return run


@story
def standby_queue_that_makes_way() -> Story:
    """While a node is taken back, what waits in the queue stays there, and once more when the leave took long."""
    change = {"standby.partitions": ("p",), "standby.max_jobs": 2, "standby.launch": "queue", "job.lost_after": 100.0}
    run = two(standby_workers=2, change=change)
    waiting = StandbyJob("8", "pending", partition="p")
    run.look(running("7"), waiting, room=(Headroom(0, "p", 0),))
    with run.quietly("the standby of job 7 grows the world"):
        run.register("standby-7", job_id="7")
        run.tick(0.3)
        run.change_over()
    run.feed(Launched(run.now, ("9",), 0))
    run.say(m.Notice(worker="standby-7", reason="SIGTERM", time=run.now, deadline=run.now + 30))
    run.tick(5.0)
    run.change_over()
    run.leave("standby-7")
    return run


@story
def partition_that_takes_standbys_back_too_soon() -> Story:
    """After three short lives in a row a partition rests."""
    run = two(standby_workers=1, change={"standby.partitions": ("p",), "standby.max_jobs": 1, "job.lost_after": 999.0})
    for number, following in (("7", "8"), ("8", "9"), ("9", "")):
        run.look(running(number), after=10.0)
        with run.quietly(f"the standby of job {number} comes, grows the world, gets a notice, and leaves with it"):
            run.register(f"standby-{number}", job_id=number)
            run.tick(0.3)
            run.change_over()
            run.tick(5.0)
            run.say(m.Notice(worker=f"standby-{number}", reason="SIGTERM", time=run.now, deadline=run.now + 30))
            run.change_over()
            run.leave(f"standby-{number}")
        run.look(room=(Headroom(0, "p", 1),), after=1.0)
        if following:
            run.feed(Launched(run.now, (following,), 0, "p"))
    run.look(room=(Headroom(0, "p", 1),), after=20.0)
    run.look(room=(Headroom(0, "p", 1),), after=20.0)
    return run


@story
def offers_left_and_taken() -> Story:
    """Policy explore gives one standby job back and takes the next one; what each has gained is told after a while."""
    policy = {"standby.policy": "explore", "standby.explore": 0.5, "standby.partitions": ("p",), "standby.max_jobs": 1}
    run = two(standby_workers=1, change={**policy, "job.lost_after": 99_999.0})
    run.beat(*LIVE, step=10, seconds=2.0)
    run.look(running("8"))
    run.register("standby-8", job_id="8")
    run.tick(0.3)
    run.leave("standby-8")
    run.beat(*LIVE, step=160, seconds=2.0, after=300.0)
    run.tick(1.0)
    run.look(room=(Headroom(0, "p", 1),), after=100.0)
    run.look(room=(Headroom(0, "p", 1),), after=600.0)
    run.look(running("10"), after=1.0)
    run.register("standby-10", job_id="10")
    run.tick(0.3)
    return run


@story
def silent_standby() -> Story:
    """A standby that hangs is lost, and its job is ended, for it only holds nodes."""
    run = two()
    run.look(running("standby-a"))
    run.register("standby-a")
    run.tick(0.1)
    with run.quietly("the live workers are heard of, the standby is not"):
        for _ in range(2):
            run.tick(2.4)
            run.beat(*LIVE)
    run.tick(0.3)
    run.look(after=0.2)
    return run


# ---- notices of the scheduler --------------------------------------------------------------------------------------


def with_standbys() -> Story:
    """The standbys of jobs a and b are in world 1."""
    run = two()
    run.grow("standby-a", "standby-b")
    return run


def notice(run: Story, word: EvictionNotice | None, state: str = "running", after: float = 0.0) -> None:
    """Slurm is asked: what it says of standby-a's job; b's runs on."""
    run.look(running("standby-a", state=state, notice=word, grace=5.0), running("standby-b", grace=20.0), after=after)


@story
def preemption_in_two_words() -> Story:
    """The worker says SIGTERM, with the grace time of its job; the scheduler's record knows the true deadline."""
    run = with_standbys()
    notice(run, None)
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now))
    notice(run, EvictionNotice("preemption", "job 99 wants its nodes", run.now + 60.0), after=0.5)
    for _ in range(2):  # beyond what the signal alone would have left
        run.tick(2.4)
        run.beat(*LIVE, "standby-a", "standby-b", generation=1)
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now))
    run.change_over()
    run.leave("standby-a", reason="not in the new world")
    notice(run, EvictionNotice("preemption", "job 99 wants its nodes", run.now + 60.0))
    return run


@story
def notice_withdrawn() -> Story:
    """A node is drained and resumed before the world without it was ready."""
    run = with_standbys()
    notice(run, EvictionNotice("node", "node n1 is drained"))
    run.prepare_all()
    notice(run, None, after=1.0)
    run.tick(1.1)
    return run


@story
def notice_that_changes() -> Story:
    """The scheduler's word stays, moves a little, comes nearer, and becomes another one; each time it is acted upon."""
    run = with_standbys()
    at = run.now + 100.0
    notice(run, EvictionNotice("reservation", "node n1 is reserved", at))
    run.prepare_all()
    notice(run, EvictionNotice("reservation", "node n1 is reserved", at), after=0.5)
    notice(run, EvictionNotice("reservation", "node n1 is reserved", at - 0.5), after=0.5)
    notice(run, EvictionNotice("reservation", "node n1 is reserved", at - 50.0), after=0.5)
    notice(run, EvictionNotice("preemption", "job 99 wants its nodes", at - 50.0), after=0.5)
    run.agree()
    run.stream_all()
    run.enter_all()
    notice(run, EvictionNotice("preemption", "job 99 wants its nodes", at - 40.0), after=0.5)
    notice(run, None, after=0.5)
    return run


@story
def signals_that_nothing_explains() -> Story:
    """Who outlives its signal may leave at ease; who is not suspended after a SIGTSTP stays."""
    run = with_standbys()
    notice(run, None)
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now))
    run.say(m.Notice(worker="standby-a", reason="SIGTSTP", time=run.now, deadline=run.now + 2, suspended=True))
    for _ in range(2):
        run.tick(2.4)
        run.beat(*LIVE, "standby-b", generation=1)
    notice(run, None, after=0.4)
    run.beat("standby-a", generation=1)
    notice(run, None)
    run.tick(1.1)
    run.change_over()
    run.leave("standby-a")
    run.say(m.Notice(worker="standby-b", reason="SIGTSTP", time=run.now, deadline=run.now + 2, suspended=True))
    run.look(running("standby-b", grace=20.0))
    run.change_over()
    run.look(running("standby-b", grace=20.0), after=4.0)
    run.look(running("standby-b", grace=20.0), after=1.0)
    return run


@story
def standbys_across_a_crash() -> Story:
    """How long each standby job has been there is remembered; one that is gone by then is seen to be so."""
    run = two()
    run.look(*(running(number) for number in ("7", "8", "9")))
    with run.quietly("standbys of three jobs come"):
        for number in ("7", "8", "9"):
            run.register(f"standby-{number}", job_id=number)
        run.tick(0.3)
    run.say(m.Notice(worker="standby-7", reason="SIGTERM", time=run.now))
    run.restart()
    for name in LIVE:
        run.register(name, generation=0)
    run.register("standby-8", job_id="8")
    run.look(running("8"), running("9"))
    run.look(after=0.1, blind="slurmctld does not answer")
    run.look(running("8"), after=0.1)
    return run


@story
def notice_by_one_of_a_job() -> Story:
    """Slurm takes a job as a whole: one worker speaks for both, in no world they leave at once."""
    run = two()
    run.register("standby-7-0", job_id="7")
    run.register("standby-7-1", job_id="7")
    run.say(m.Notice(worker="standby-7-0", reason="SIGTERM", time=run.now))
    run.beat("standby-7-1", generation=-1)
    run.leave("standby-7-0", "standby-7-1", reason="SIGTERM")
    return run


@story
def standby_job_is_over() -> Story:
    """One job ends and leaves its worker time to hand over; another one's worker is silent already, and lost."""
    run = with_standbys()
    notice(run, None)
    run.beat(*LIVE, "standby-a", "standby-b", generation=1, step=2, after=2.0)
    run.look(running("standby-b"))
    run.change_over()
    run.beat(*LIVE, generation=2, step=3, after=2.0)
    run.look()
    return run


@story
def suspended_worker() -> Story:
    """A member leaves the world before it is stopped, is not told to exit, and counts again when it runs."""
    run = with_standbys()
    run.say(m.Notice(worker="standby-a", reason="SIGTSTP", time=run.now, deadline=run.now + 2, suspended=True))
    word = EvictionNotice("suspension", "the job is suspended")
    notice(run, word, "suspended")
    run.change_over()
    for _ in range(2):
        run.tick(2.4)
        run.beat(*LIVE, "standby-b", generation=2, step=3)
    notice(run, word, "suspended", after=1.0)
    run.say(m.Notice(worker="standby-a", reason="SIGCONT", time=run.now, withdrawn=True))
    run.tick(0.3)
    return run


@story
def suspended_in_the_world() -> Story:
    """A member is stopped before it could leave: training stands until it runs again."""
    run = with_standbys()
    run.say(m.Notice(worker="standby-a", reason="SIGTSTP", time=run.now, deadline=run.now + 2, suspended=True))
    run.tick(2.1)
    notice(run, EvictionNotice("suspension", "the job is suspended"), "suspended")
    run.tick(1.0)
    run.say(m.Notice(worker="standby-a", reason="SIGCONT", time=run.now, withdrawn=True))
    run.tick(0.1)
    return run
