"""Standby jobs are started and ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from coordinator_lab import job
from coordinator_states import Run, settings

from liver_slurm.config.schema import JobConfig
from liver_slurm.coordinator.core import parts, standby_scaling
from liver_slurm.coordinator.core.io import CapacitySeen, Defer, Launch, Launched, LaunchRefused, Release
from liver_slurm.coordinator.core.records import LifeBegan, StandbyLaunched, StartFailed
from liver_slurm.coordinator.core.standby_scaling import APART, PORTION, STRETCH
from liver_slurm.coordinator.core.step import recover
from liver_slurm.coordinator.core.transition import Transition
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import CapacitySnapshot, EvictionNotice, Headroom, StandbyJob


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
    assert deferred(wanted(run, "standby-a")) == [Defer(("7", "9"), run.now + APART)]
    assert deferred(wanted(run, "standby-b")) == [], "it does already"
    run.tick(APART)
    run.prepare_all()
    run.agree()
    run.actions.clear()
    run.stream_all()
    assert deferred(run.actions) == [Defer(("7", "9"), run.now + APART)], "only now nodes become free"


def test_what_is_submitted_meanwhile_stays_in_the_queue_too() -> None:
    run = queueing()
    wanted(run, "standby-a")
    until = run.now + APART
    run.now += 1.0
    assert deferred(run.feed(Launched(run.now, ("10", "11"), 0))) == [Defer(("10", "11"), until)]
    actions = run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, (StandbyJob("standby-a", "running", ("n1",)),))))
    assert {action.until for action in actions if isinstance(action, Launch)} == {until}
    run.now += APART
    assert deferred(run.feed(Launched(run.now, ("12",), 0))) == []


def test_a_look_shows_what_was_submitted_before_it() -> None:
    run = queueing()
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, (StandbyJob("9", "running", ("n3",)),))))
    assert deferred(wanted(run, "standby-a")) == []


def look(run: Run, *jobs: StandbyJob, room: int = 1, after: float = 6.0, **said: Any) -> list[Launch]:
    """Feed one look at a queue with these jobs of ours and room for more; returns what is started."""
    run.tick(after)
    capacity = CapacitySnapshot(run.now, jobs, (Headroom(0, "a", room),), **said)
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
            look(run, *([StandbyJob(job_id, state, partition="a")] if state else []), room=0)
    assert look(run) == []
    *_, last = run.events("standby_failed")
    assert (last["job_id"], last["partition"], last["in_a_row"], last["alone_s"]) == ("3", "a", 3, 30.0)
    run.tick(30.0)
    assert look(run) == [Launch(1, 0, "a")]


def submitted(run: Run, *job_ids: str) -> Run:
    """Have the scheduler accept jobs in partition a, in as many orders."""
    for job_id in job_ids:
        run.feed(Launched(run.now, (job_id,), 0, "a"))
    return run


def of(job_id: str, state: Any = "running", kind: Any = None) -> StandbyJob:
    notice = EvictionNotice(kind, "") if kind else None
    return StandbyJob(job_id, state, ("n",) if state != "pending" else (), partition="a", notice=notice)


@pytest.mark.parametrize(
    ("last", "how"),
    [
        (of("1", kind="preemption"), None),
        (of("1", kind="preemption"), "ended"),
        (of("1", "pending"), None),
        (of("1", "pending"), "taken"),
        (of("1"), "taken"),
        (of("1", "ending", "ending"), "taken"),
        (None, "taken"),
    ],
)
def test_what_others_end_did_not_fail(last: StandbyJob | None, how: str | None) -> None:
    run = submitted(wishing(), "1")
    if last is not None:
        look(run, last, room=0)
    look(run, room=0, over={"1": how} if how else {})
    assert run.events("standby_failed") == []
    assert run.state.standbys.starting == {}


@pytest.mark.parametrize("last", [of("1", "pending"), of("1"), of("1", "ending", "ending"), None])
def test_one_that_ended_by_itself_did(last: StandbyJob | None) -> None:
    run = submitted(wishing(), "1")
    if last is not None:
        look(run, last, room=0)
    look(run, room=0, over={"1": "ended"})
    assert len(run.events("standby_failed")) == 1


def test_jobs_that_fail_together_do_not_close_a_partition() -> None:
    run = submitted(wishing(), *"123456789")
    look(run, *(of(job_id) for job_id in "123456789"), room=0)
    look(run, room=0)
    failed = run.events("standby_failed")
    assert [said["in_a_row"] for said in failed] == [1] * 9
    assert {said["alone_s"] for said in failed} == {0.0}


def test_jobs_of_one_order_do_not_close_a_partition_one_after_another() -> None:
    run = many()
    look(run, room=20)
    first = tuple(str(number) for number in range(PORTION))
    run.feed(Launched(run.now, first, 0, "a"))
    for left in range(PORTION, -1, -1):
        look(run, *(of(job_id) for job_id in first[:left]), room=0, after=30.0)
    failed = run.events("standby_failed")
    assert [said["in_a_row"] for said in failed] == [1] * PORTION


def test_a_life_that_is_forgotten_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "REMEMBERED", 0)
    run = submitted(wishing(), "1", "2")
    look(run, of("1"), of("2"), room=0)
    for job_id in "12":
        run.register(f"standby-{job_id}", job_id=job_id)
        wanted(run, f"standby-{job_id}")
    assert [span.job_id for span in run.state.history.spans] == ["2"]
    look(run, room=0)
    assert run.events("standby_failed") == []


def test_a_worker_that_is_ready_before_the_next_look_is_of_its_partition() -> None:
    run = submitted(wishing(), "1")
    run.register("standby-1", job_id="1")
    assert [life.partition for life in run.journaled(LifeBegan)] == ["a"]


def test_a_job_without_a_worker_that_is_ready_is_ended() -> None:
    wide = config(("tp1pp1dp2", "tp1pp1dp4"), launch="queue")
    run = Run(recover([], settings(config=wide, standby_workers=4), 1000.0))
    run.train("live-0", "live-1")
    assert reply(run, m.ResizeRequest(layout="tp1pp1dp4")).ok
    submitted(run, "1", "2")
    limit = run.state.settings.config.job.start_timeout
    run.register("standby-2", job_id="2", warm=False)

    def later(*jobs: StandbyJob, after: float) -> list[str]:
        look(run, *jobs, room=0, after=after / 2)
        for name in ("live-0", "live-1", "standby-2"):
            run.say(m.Heartbeat(worker=name, generation=0, step=0, step_seconds=0.0, warm=name != "standby-2"))
        before = len(run.actions)
        look(run, *jobs, room=0, after=after / 2)
        return [action.job_id for action in run.actions[before:] if isinstance(action, Release)]

    assert later(of("1", "pending"), of("2", "pending"), after=1.5 * limit) == [], "it waits as long as it must"
    assert later(of("1"), of("2"), after=limit) == []
    assert later(of("1"), of("2"), after=limit) == ["1", "2"]
    assert [said["job_id"] for said in run.events("standby_failed")] == ["1", "2"]
    assert all("no worker of it was ready within" in said["reason"] for said in run.events("standby_release"))
    look(run, room=0, over={"1": "taken", "2": "taken"})
    assert len(run.events("standby_failed")) == 2


def test_a_job_whose_only_worker_is_lost_before_it_is_ready_has_failed() -> None:
    run = submitted(wishing(), "1")
    look(run, of("1"), room=0)
    run.register("standby-1", job_id="1", warm=False)
    run.say(m.WorkerEnded(worker="standby-1", reason="killed by SIGKILL"))
    look(run, room=0, over={"1": "taken"})
    assert [said["job_id"] for said in run.events("standby_failed")] == ["1"]


def test_a_worker_whose_job_was_told_to_end_is_turned_away() -> None:
    run = submitted(waiting_run(), "1")
    look(run, of("1"), room=0)
    look(run, of("1"), room=0, after=70.0)
    assert any(action == Release("1") for action in run.actions), "nobody needs it"
    actions = run.register("standby-1", job_id="1")
    assert [to for to, _ in run.sent(m.Leave, actions)] == ["standby-1"]
    assert run.journaled(LifeBegan) == []
    look(run, room=0)
    assert run.state.standbys.released == {}


def many(launch: str = "queue") -> Run:
    """A run that wants 18 standby jobs, as spares."""
    wanted = config(("tp1pp1dp2",), launch=launch, max_jobs=20, spares=18)
    run = Run(recover([], settings(config=wanted, standby_workers=20), 1000.0))
    run.train("live-0", "live-1")
    return run


def test_many_jobs_are_started_in_portions() -> None:
    run = many()
    assert look(run, room=20) == [Launch(PORTION, 0, "a")]
    assert [said["count"] for said in run.events("standby_launch")] == [18]
    first = tuple(str(number) for number in range(PORTION))
    assert look(run, room=20) == [], "it is not known yet which those are"
    assert Launch(PORTION, 0, "a") in run.feed(Launched(run.now, first, 0, "a"))
    run.register("standby-0", job_id="0")
    wanted(run, "standby-0")
    second = tuple(str(number + PORTION) for number in range(PORTION))
    until = run.now + APART
    actions = run.feed(Launched(run.now, second, 0, "a"))
    assert deferred(actions) == [Defer(second, until)]
    assert [action for action in actions if isinstance(action, Launch)] == [Launch(2, 0, "a", until)]
    run.feed(LaunchRefused(run.now, "no"))
    assert [one for one in run.feed(Launched(run.now, ("99",), 0, "a")) if isinstance(one, Launch)] == []


def test_what_is_ordered_and_no_longer_wanted_is_not_started() -> None:
    run = many()
    assert look(run, room=20) == [Launch(PORTION, 0, "a")]
    look(run, *(of(str(number), "pending") for number in range(100, 120)), room=20)
    first = tuple(str(number) for number in range(PORTION))
    assert [one for one in run.feed(Launched(run.now, first, 0, "a")) if isinstance(one, Launch)] == []


def test_of_an_order_no_more_is_started_than_is_wanted_by_now() -> None:
    run = many("probe")
    assert look(run, room=20) == [Launch(PORTION, 0, "a")]
    look(run, room=PORTION + 6)
    assert [order.count for order in run.state.standbys.orders] == [PORTION, 6]
    first = tuple(str(number) for number in range(PORTION))
    assert Launch(6, 0, "a") in run.feed(Launched(run.now, first, 0, "a"))
    look(run, *(of(number, "pending") for number in first), room=0)
    assert [order.count for order in run.state.standbys.orders] == [6], "it is under way"


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
    assert deferred(wanted(run, "standby-a")) == [Defer(("7", "9"), run.now + APART)]
    jobs = (StandbyJob("standby-a", "running", ("n1",)),)
    actions = run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, jobs, (Headroom(0, "p", 1),))))
    assert {action.until for action in actions if isinstance(action, Launch)} == {run.now + APART}, (
        "room that others wait for"
    )


# ---- how long the queue makes way ----------------------------------------------------------------------------------


def test_notices_without_end_do_not_keep_the_queue_back_for_ever() -> None:
    run = queueing()
    begun, open_for = run.now, 0.0
    for number in range(40):
        name = f"standby-{100 + number}"
        run.register(name, job_id=name)
        wanted(run, name)
        if run.now >= run.state.standbys.deferred_until:
            open_for += 3.0
        run.now += 3.0
        for member in run.live.members:
            run.say(m.Heartbeat(worker=member, generation=1, step=0, step_seconds=0.0, warm=True))
    assert open_for >= (run.now - begun) / (STRETCH + APART) * APART / 2
    assert max(action.until for action in deferred(run.actions)) <= run.now + APART


def test_a_signal_of_our_own_keeps_nobody_back() -> None:
    run = queueing()
    run.register("standby-5", job_id="5")
    look(run, of("5"), room=0)
    standby_scaling.leave(t := Transition(run.state, run.now), ("5",), "the policy")
    run.state = t.state
    assert deferred(wanted(run, "standby-5")) == []


def test_a_warning_of_a_time_limit_keeps_nobody_back() -> None:
    run = queueing()
    for name, ends_at in (("standby-a", run.now + 80.0), ("standby-b", run.now + 800.0)):
        jobs = (StandbyJob(name, "running", ("n1",), ends_at=ends_at), StandbyJob("7", "pending"))
        run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, jobs)))
        assert bool(deferred(wanted(run, name))) == (name == "standby-b")


def test_a_suspended_standby_keeps_nobody_back_at_a_commit() -> None:
    run = queueing()
    run.register("standby-c")
    run.say(m.Notice(worker="standby-c", reason="SIGTSTP", time=run.now, deadline=run.now + 2, suspended=True))
    assert reply(run, m.ResizeRequest(workers=2)).ok
    run.tick(1.0)
    run.prepare_all()
    run.agree()
    run.actions.clear()
    run.stream_all()
    assert run.state.generation == 2
    assert deferred(run.actions) == []


def restarted_with_a_job_of_two() -> Run:
    """A coordinator has come back; of a job's two workers, both members, only the second has registered."""
    made = config(tasks_per_node=2)
    run = Run(recover([], settings(config=made, standby_workers=8), 1000.0))
    run.train("live-0", "live-1")
    for name in ("standby-7-0", "standby-7-1"):
        run.register(name, job_id="7")
    run.tick(0.3)
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    new = Run(recover(run.records, settings(config=made, standby_workers=8, epoch=2), run.now + 1))
    new.feed(CapacitySeen(new.now, CapacitySnapshot(new.now, (StandbyJob("7", "running", ("n1",), partition="a"),))))
    for name in ("live-0", "live-1", "standby-7-1"):
        new.register(name, 1, 5, job_id="7" if name.startswith("standby") else name)
    return new


def test_a_job_is_not_ended_while_a_member_may_come_back() -> None:
    run = restarted_with_a_job_of_two()
    actions = run.say(m.Failed(worker="standby-7-1", generation=1, step=5, error="ECC"))
    assert Release("7") not in actions
    assert not run.sent(m.Leave, run.register("standby-7-0", 1, 5, job_id="7"))
    actions = run.say(m.Failed(worker="standby-7-0", generation=1, step=5, error="ECC"))
    assert Release("7") in actions


def test_a_member_is_not_turned_away_though_its_job_was_told_to_end() -> None:
    run = restarted_with_a_job_of_two()
    pool = replace(run.state.standbys, released={"7": run.now})
    run.state = replace(run.state, standbys=pool)
    assert not run.sent(m.Leave, run.register("standby-7-0", 1, 5, job_id="7"))


def test_the_scheduler_is_told_again_to_end_a_job_that_goes_on() -> None:
    run = Run(recover([], settings(config=config(), standby_workers=4), 1000.0))
    run.train("live-0", "live-1")
    limit = run.state.settings.config.job.start_timeout
    told = []
    for _ in range(int(limit) + 200):
        run.now += 1.0
        jobs = (StandbyJob("7", "running", ("n1",), partition="a"),)
        if Release("7") in run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, jobs))):
            told.append(run.now - 1000.0)
    assert told == [limit + 2.0 + 60.0 * n for n in range(len(told))]
    assert len(told) == 4
    ending = (StandbyJob("7", "ending", ("n1",), partition="a"),)
    assert Release("7") not in run.feed(CapacitySeen(run.now + 99.0, CapacitySnapshot(run.now + 99.0, ending)))


def test_a_refused_launch_leaves_no_record() -> None:
    run = waiting_run()
    run.feed(Launched(run.now, (), 0, "a"))
    assert run.journaled(StandbyLaunched) == []


def test_a_look_that_took_long_ends_no_member() -> None:
    """It says of a job that it waits, in a partition that rests, and a worker of the job is a member by now."""
    run = waiting_run("auto")
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    for number in (1, 2, 3):
        run.state = run.state.apply(StartFailed(job_id=str(number), partition="b", time=run.now - 100 + 10 * number))
    run.whole_journal = False
    jobs = (
        StandbyJob("standby-a", "running", ("n1",), partition="a"),
        StandbyJob("standby-b", "pending", partition="b"),
    )
    actions = run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now - 8.0, jobs)))
    assert not [action for action in actions if isinstance(action, Release)]
