"""Standby jobs are started and ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coordinator_lab import job
from coordinator_states import Run, settings

from liver_slurm.config.schema import JobConfig
from liver_slurm.coordinator.core.io import CapacitySeen, Defer, Launch, Launched, LaunchRefused, Release
from liver_slurm.coordinator.core.standby_scaling import APART
from liver_slurm.coordinator.core.step import recover
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import CapacitySnapshot, Headroom, StandbyJob


def config(layouts: Any = "auto", **standby: Any) -> JobConfig:
    made = job()
    made = replace(made, elastic=replace(made.elastic, layouts=layouts))
    options = {"max_jobs": 4, "partitions": ("a", "b"), "hold": 60.0, **standby}
    return replace(made, standby=replace(made.standby, **options))


def waiting_run(layouts: Any = ("tp1pp1dp2",), standby_workers: int = 4) -> Run:
    made = settings(config=config(layouts), standby_workers=standby_workers)
    run = Run(recover([], made, 1000.0))
    run.train("live-0", "live-1")
    return run


def reply(run: Run, message: m.ResizeRequest) -> m.Reply:
    (answer,) = [message for _, message in run.sent(m.Reply, run.say(message))]
    assert isinstance(answer, m.Reply)
    return answer


def test_a_request_waits_for_standbys() -> None:
    run = waiting_run()
    capacity = CapacitySnapshot(run.now, (), (Headroom(0, "a", 3),))
    assert not any(isinstance(action, Launch) for action in run.feed(CapacitySeen(run.now, capacity)))
    answer = reply(run, m.ResizeRequest(layout="tp1pp1dp4"))
    assert answer.ok
    assert answer.result["waits_for_workers"] == 2
    assert Launch(2, 0, "a") in run.feed(CapacitySeen(run.now, capacity))
    assert "2 of 4 are ready" in run.state.reason
    run.register("standby-1-0", job_id="1")
    run.register("standby-2-0", job_id="2")
    assert run.state.world.attempt is not None
    assert (str(run.state.world.attempt.target.layout), run.state.world.attempt.cause) == ("tp1pp1dp4", "request")


def test_a_request_that_can_never_be_filled() -> None:
    answer = reply(waiting_run(), m.ResizeRequest(layout="tp1pp1dp7"))
    assert not answer.ok
    assert "7 workers are needed and 2 are there" in answer.error
    assert "4 at most come with standby jobs" in answer.error
    assert not reply(waiting_run(standby_workers=0), m.ResizeRequest(layout="tp1pp1dp3")).ok


def test_a_later_request_takes_its_place() -> None:
    run = waiting_run()
    assert reply(run, m.ResizeRequest(layout="tp1pp1dp4")).ok
    assert reply(run, m.ResizeRequest(layout="tp2pp1dp1")).ok
    (given_up,) = run.events("resize_given_up")
    assert "takes its place" in given_up["reason"]
    assert run.state.world.attempt is not None
    assert str(run.state.world.attempt.target.layout) == "tp2pp1dp1"


def test_extra_standbys_leave() -> None:
    run = waiting_run(standby_workers=4)
    seen = CapacitySnapshot(run.now, (StandbyJob("7", "running", ("n1",), partition="a"),))
    run.register("standby-7-0", job_id="7")
    actions = run.feed(CapacitySeen(run.now, seen))
    for _ in range(7):
        run.now += 10.0
        for name in ("live-0", "live-1", "standby-7-0"):
            run.say(m.Heartbeat(worker=name, generation=-1, step=0, step_seconds=0.0, warm=True))
        actions = run.feed(CapacitySeen(run.now, seen))
        if Release("7") in actions:
            break
    assert Release("7") in actions
    assert run.sent(m.Leave, actions)
    assert "useful" in run.events("standby_release")[0]["reason"]


def test_a_refused_launch_waits() -> None:
    wanted = job()
    run = Run(config=replace(wanted, standby=replace(wanted.standby, max_jobs=3)))
    capacity = CapacitySnapshot(run.now, (), (Headroom(0, "", 2),))
    assert Launch(2) in run.feed(CapacitySeen(run.now, capacity))
    run.feed(LaunchRefused(run.now, "no"))
    assert Launch(2) not in run.feed(CapacitySeen(run.now, capacity))
    run.now += 31
    assert Launch(2) in run.feed(CapacitySeen(run.now, capacity))


def queueing(launch: str = "queue") -> Run:
    """Two standbys are members of the live world, one job waits in the queue, another was just submitted."""
    run = Run(recover([], settings(config=config(launch=launch), standby_workers=4), 1000.0))
    run.train("live-0", "live-1")
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    jobs = (
        StandbyJob("standby-a", "running", ("n1",)),
        StandbyJob("7", "pending"),
        StandbyJob("8", "pending", ("n2",)),
    )
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, jobs)))
    run.feed(Launched(run.now, ("9",), 0))
    return run


def deferred(actions: list[Any]) -> list[Defer]:
    return [action for action in actions if isinstance(action, Defer)]


def wanted(run: Run, name: str) -> list[Any]:
    return run.say(m.Notice(worker=name, reason="SIGTERM", time=run.now, deadline=run.now + 60))


def test_what_waits_in_the_queue_stays_off_nodes_that_others_want() -> None:
    run = queueing()
    assert deferred(wanted(run, "standby-a")) == [Defer(("7", "9"), APART)]
    assert deferred(wanted(run, "standby-b")) == [], "it does already"
    run.tick(APART)
    run.prepare_all()
    run.agree()
    run.actions.clear()
    run.stream_all()
    assert deferred(run.actions) == [Defer(("7", "9"), APART)], "only now nodes become free"


def test_what_is_submitted_meanwhile_stays_in_the_queue_too() -> None:
    run = queueing()
    wanted(run, "standby-a")
    run.now += 1.0
    assert deferred(run.feed(Launched(run.now, ("10", "11"), 0))) == [Defer(("10", "11"), APART - 1.0)]
    actions = run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, (StandbyJob("standby-a", "running", ("n1",)),))))
    assert {action.after for action in actions if isinstance(action, Launch)} == {APART - 1.0}
    run.now += APART
    assert deferred(run.feed(Launched(run.now, ("12",), 0))) == []


def test_a_look_shows_what_was_submitted_before_it() -> None:
    run = queueing()
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, (StandbyJob("9", "running", ("n3",)),))))
    assert deferred(wanted(run, "standby-a")) == []


def look(run: Run, *jobs: StandbyJob) -> list[Launch]:
    """Feed one look at a queue with these jobs of ours and room for more; returns what is started."""
    run.tick(5.0)
    capacity = CapacitySnapshot(run.now, jobs, (Headroom(0, "a", 1),))
    return [action for action in run.feed(CapacitySeen(run.now, capacity)) if isinstance(action, Launch)]


def wishing() -> Run:
    """A run that is asked to grow by one worker, which a standby job in partition a would bring."""
    run = waiting_run(("tp1pp1dp2", "tp1pp1dp3"))
    assert reply(run, m.ResizeRequest(layout="tp1pp1dp3")).ok
    return run


def test_jobs_that_fail_as_they_start_are_tried_ever_less_often() -> None:
    """Seen running, seen waiting, and never seen at all: each is gone at the second look at the latest."""
    run = wishing()
    for job_id, states in (("1", ("running",)), ("2", ("pending", "running")), ("3", ())):
        assert look(run) == [Launch(1, 0, "a")], job_id
        run.feed(Launched(run.now, (job_id,), 0, "a"))
        for state in states or (None,):
            look(run, *([StandbyJob(job_id, state, partition="a")] if state else []))
    assert look(run) == []
    *_, last = run.events("standby_failed")
    assert (last["job_id"], last["partition"], last["in_a_row"], last["alone_s"]) == ("3", "a", 3, 30.0)
    run.tick(30.0)
    assert look(run) == [Launch(1, 0, "a")]


def test_a_job_that_had_a_worker_did_not_fail() -> None:
    run = wishing()
    for job_id in "12":  # a third short life would have the partition rest
        assert look(run) == [Launch(1, 0, "a")], job_id
        run.feed(Launched(run.now, (job_id,), 0, "a"))
        look(run, StandbyJob(job_id, "running", partition="a"))
        run.register(f"standby-{job_id}-0", job_id=job_id)
        run.say(m.WorkerEnded(worker=f"standby-{job_id}-0", reason="killed by SIGKILL"))
    assert run.events("standby_failed") == []


def test_a_probe_stays_in_the_queue_too() -> None:
    run = queueing(launch="probe")
    assert deferred(wanted(run, "standby-a")) == [Defer(("7", "9"), APART)]
    jobs = (StandbyJob("standby-a", "running", ("n1",)),)
    actions = run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, jobs, (Headroom(0, "p", 1),))))
    assert {action.after for action in actions if isinstance(action, Launch)} == {APART}, "room that others wait for"
