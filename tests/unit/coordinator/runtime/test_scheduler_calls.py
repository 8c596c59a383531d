"""Calls to a scheduler in threads: a slow or silent one holds nothing up and proves nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from coordinator_lab import until

from liver_slurm.base.clock import FakeClock
from liver_slurm.base.errors import ClusterError
from liver_slurm.base.query_budget import QueryBudget
from liver_slurm.config.schema import JobConfig, StandbySection
from liver_slurm.coordinator.core.io import (
    CapacitySeen,
    Defer,
    GiveBack,
    GivenBack,
    GuaranteedJobSeen,
    Input,
    Interrupted,
    Launch,
    Launched,
    LaunchRefused,
    Release,
    StopAsked,
    SubmitSuccessor,
    SuccessorAnswer,
)
from liver_slurm.coordinator.runtime.scheduler_calls import OFTEN, SELDOM, Scheduler, SchedulerCalls
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.ports import (
    CapacitySnapshot,
    Fate,
    GuaranteedJob,
    LaunchStopped,
    StandbyJob,
    SuccessorJob,
)
from liver_slurm.scheduler.slurm.records import JobInfo, NodeInfo, PartitionInfo, ReservationInfo
from liver_slurm.scheduler.slurm.standby import SlurmStandbys

RUN_DIR = RunDir(Path("/runs/gpt"))
Come = Callable[..., list[Input]]


class Standbys:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.jobs: list[str] = []
        self.silent = False
        self.broken: Exception | None = None
        self.deferred: list[tuple[tuple[str, ...], float]] = []
        self.started_after: list[float] = []
        self.most = 99
        self.deferring = threading.Event()
        self.deferring.set()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def observe(self) -> CapacitySnapshot:
        self.may_answer.wait(10)
        if self.broken is not None:
            raise self.broken
        if self.silent:
            raise ClusterError("slurmctld does not answer")
        return CapacitySnapshot(time=1.0, jobs=tuple(StandbyJob(one, "running") for one in self.jobs))

    def launch(self, count: int, unit: int, partition: str, after: float) -> list[str]:
        if self.broken is not None:
            raise self.broken
        self.may_answer.wait(10)
        if self.silent:
            raise ClusterError("refused")
        self.started_after.append(after)
        self.jobs += [f"j{number}" for number in range(min(count, self.most))]
        if count > self.most:
            raise LaunchStopped(self.jobs, "no more")
        return self.jobs

    def release(self, job_id: str) -> None:
        self.jobs.remove(job_id)

    def defer(self, job_ids: Sequence[str], seconds: float) -> None:
        self.deferred.append((tuple(job_ids), seconds))
        self.deferring.wait(10)
        if self.silent:
            raise ClusterError("not pending")

    def close(self) -> None:
        self.jobs.clear()


class OwnJob:
    """Notes what is done, and answers what it is told to."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.successor: SuccessorJob | None = None
        self.error = ""

    def _do(self, what: str) -> None:
        self.done.append(what)
        if self.error:
            raise ClusterError(self.error)

    def observe(self) -> GuaranteedJob:
        self._do("observe")
        return GuaranteedJob(10.0, 10.0, self.successor)

    def submit(self) -> str:
        self._do("submit")
        return "8"

    def close(self) -> None:
        self._do("close")


class Nodes:
    """Takes nodes when it is let, or until it is told not to wait."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def give_back(self, component: int, keep: int) -> tuple[tuple[str, ...], bool]:
        if component == 1:
            return ("n3",), True
        if component == 2:
            raise ClusterError("scontrol: no")
        assert self.stopped.wait(30)
        raise ClusterError("the coordinator has ended")

    def stop(self) -> None:
        self.stopped.set()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(100.0)


def come(calls: SchedulerCalls, now: float = 5.0) -> list[Input]:
    return until(lambda: calls.poll(now), "an answer")


# ---- standbys ------------------------------------------------------------------------------------------------------


def test_jobs_stay_in_the_queue_although_a_look_is_under_way(clock: FakeClock) -> None:
    standbys = Standbys()
    standbys.may_answer.clear()
    calls = SchedulerCalls(Scheduler(standbys), clock, 4.0)
    calls.poll(5.0)
    calls.perform(Defer(("7", "8"), 103.0))
    until(lambda: standbys.deferred, "the order")
    assert standbys.deferred == [(("7", "8"), 3.0)]
    standbys.may_answer.set()
    standbys.silent = True
    calls.perform(Defer(("7",), 103.0))
    calls.close(run_over=True)
    assert len(standbys.deferred) == 2


def test_of_deferrals_that_have_waited_what_still_counts_is_told_at_once(clock: FakeClock) -> None:
    standbys = Standbys()
    standbys.deferring.clear()  # Slurm is away
    calls = SchedulerCalls(Scheduler(standbys), clock, 4.0)
    calls.perform(Defer(("1",), 105.0))
    until(lambda: standbys.deferred, "the first order")
    for order in (Defer(("2",), 105.0), Defer(("3", "4"), 115.0), Defer(("4", "5"), 120.0)):
        calls.perform(order)
    clock.advance(10.0)
    standbys.deferring.set()
    calls.close(run_over=False)
    assert standbys.deferred == [(("1",), 5.0), (("3", "4", "5"), 10.0)]


def test_jobs_of_an_order_that_is_refused_midway_are_known(clock: FakeClock) -> None:
    standbys = Standbys()
    standbys.most = 2
    calls = SchedulerCalls(Scheduler(standbys), clock, 4.0)
    come(calls)
    calls.perform(Launch(3, 0, "a", 103.0))
    assert come(calls) == [LaunchRefused(5.0, "no more"), Launched(5.0, ("j0", "j1"), 0, "a")]
    assert standbys.started_after == [3.0]
    calls.close(run_over=False)


def test_nothing_is_started_when_nobody_would_write_it_down(clock: FakeClock) -> None:
    standbys = Standbys()
    standbys.may_answer.clear()
    calls = SchedulerCalls(Scheduler(standbys), clock, 4.0)
    calls.poll(5.0)
    calls.perform(Launch(1, 0, "a"))
    threading.Timer(0.2, standbys.may_answer.set).start()
    calls.close(run_over=False)
    assert standbys.started_after == []


def test_a_look_after_a_launch_shows_the_launched_jobs(clock: FakeClock) -> None:
    standbys = Standbys()
    calls = SchedulerCalls(Scheduler(standbys), clock, 4.0)
    assert come(calls) == [CapacitySeen(5.0, CapacitySnapshot(1.0, ()))]
    calls.perform(Launch(2, 0, "a"))
    assert come(calls) == [Launched(5.0, ("j0", "j1"), 0, "a")]
    clock.advance(4.0)
    (seen,) = come(calls)
    assert isinstance(seen, CapacitySeen)
    assert len(seen.capacity.jobs) == 2
    calls.perform(Release("j0"))
    calls.close(run_over=False)
    assert standbys.jobs == ["j1"], "left to the coordinator that goes on"
    again = SchedulerCalls(Scheduler(standbys), clock)
    again.close(run_over=True)
    assert standbys.jobs == []


def test_a_slow_scheduler_holds_nothing_up(clock: FakeClock) -> None:
    standbys = Standbys()
    standbys.may_answer.clear()
    calls = SchedulerCalls(Scheduler(standbys), clock)
    assert calls.poll(1.0) == calls.poll(2.0) == []
    standbys.may_answer.set()
    assert come(calls)
    calls.close(run_over=True)


def test_a_silent_scheduler_makes_us_blind_and_a_refused_launch_is_said(clock: FakeClock) -> None:
    standbys = Standbys()
    standbys.jobs = ["kept"]
    calls = SchedulerCalls(Scheduler(standbys), clock, 4.0)
    come(calls)
    standbys.silent = True
    clock.advance(4.0)
    (blind,) = come(calls)
    assert isinstance(blind, CapacitySeen)
    assert blind.capacity.blind == "slurmctld does not answer"
    assert [job.job_id for job in blind.capacity.jobs] == ["kept"]
    calls.perform(Launch(1, 0, "a"))
    assert come(calls, 6.0) == [LaunchRefused(6.0, "refused")]
    calls.close(run_over=True)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (OSError(122, "Disk quota exceeded"), "OSError: [Errno 122] Disk quota exceeded"),
        (ValueError("no number: INVALID"), "ValueError: no number: INVALID"),
    ],
)
def test_a_watcher_that_breaks_makes_us_blind_not_dead(clock: FakeClock, broken: Exception, told: str) -> None:
    # LS-14, LS-20
    standbys = Standbys()
    calls = SchedulerCalls(Scheduler(standbys), clock, 4.0)
    come(calls)
    standbys.broken = broken
    clock.advance(4.0)
    (blind,) = come(calls)
    assert isinstance(blind, CapacitySeen)
    assert blind.capacity.blind == told
    calls.perform(Launch(1, 0, "a"))
    assert come(calls, 6.0) == [LaunchRefused(6.0, told)]
    standbys.broken = None
    clock.advance(4.0)
    (seen,) = come(calls)
    assert isinstance(seen, CapacitySeen)
    assert not seen.capacity.blind, "it looks again"
    calls.close(run_over=True)


def test_the_budget_spaces_the_looks_and_is_told(clock: FakeClock) -> None:
    standbys = Standbys()
    budget = QueryBudget(per_minute=1.0, clock=clock.now)

    def ask() -> CapacitySnapshot:
        budget.spend(3)
        return CapacitySnapshot(time=1.0, jobs=())

    standbys.observe = ask  # type: ignore[method-assign]
    calls = SchedulerCalls(Scheduler(standbys), clock, 4.0, budget)
    (seen,) = come(calls)
    assert isinstance(seen, CapacitySeen)
    assert seen.capacity.queries == 3
    # A launch, which is no question, is not held up; when it is done, no further look was taken.
    clock.advance(179.0)
    calls.perform(Launch(1, 0, "a"))
    assert come(calls, 6.0) == [Launched(6.0, ("j0",), 0, "a")]
    assert calls.poll(6.0) == []
    clock.advance(1.0)
    assert come(calls)
    calls.close(run_over=True)


class Counted:
    """A client of a cluster whose jobs come and go; it asks slurmctld what Slurm's commands do."""

    def __init__(self, budget: QueryBudget, clock: FakeClock) -> None:
        self._budget, self._clock = budget, clock
        self.asked: list[float] = []

    def _ask(self, queries: int) -> None:
        self._budget.spend(queries)
        self.asked += [self._clock.now()] * queries

    def jobs(self, ids: Sequence[str] = (), names: Sequence[str] = (), *, own: bool = False) -> list[JobInfo]:
        self._ask(2)
        newest = int(self._clock.now() / 5)  # every five seconds one begins, which stays for a minute
        return [
            JobInfo(
                job_id=str(number), state="RUNNING", partition="a", nodes=(f"n{number % 12}",), preempt_time=None,
                restarts=0, reason="", time_limit=600.0, end_time=None, name=names[0] if names else "x",
                comment=str(RUN_DIR.path),
            )
            for number in range(newest - 12, newest)
        ]  # fmt: skip

    def nodes(self, partition: str | None = None) -> list[NodeInfo]:
        self._ask(2)
        return []

    def partitions(self) -> list[PartitionInfo]:
        self._ask(1)
        return []

    def reservations(self) -> list[ReservationInfo]:
        self._ask(1)
        return []

    def config(self) -> dict[str, str]:
        self._ask(1)
        return {}

    def hostnames(self, expression: str) -> tuple[str, ...]:
        return (expression,)


def test_an_hour_with_many_arrivals_has_twelve_queries_in_no_minute_more(clock: FakeClock) -> None:
    # LS-22
    budget = QueryBudget(per_minute=12.0, clock=clock.now)
    client = Counted(budget, clock)
    config = JobConfig(standby=StandbySection(partitions=("a",), max_jobs=20))
    capacity = SlurmStandbys(config, RUN_DIR, client, print, clock.now)  # type: ignore[arg-type]
    job = OwnJob()
    observed = job.observe

    def of_our_job() -> GuaranteedJob:
        client.jobs()
        return observed()

    job.observe = of_our_job  # type: ignore[method-assign]
    calls = SchedulerCalls(Scheduler(capacity, job), clock, 5.0, budget)
    looks: list[float] = []
    while clock.now() < 3700.0:
        given = calls.poll(clock.now())
        while calls.waiting():  # for a thread, in which no time goes by here
            given += until(lambda: calls.poll(clock.now()), "an answer")
        looks += [one.time for one in given if isinstance(one, CapacitySeen)]
        clock.advance(1.0)
    calls.close(run_over=False)
    within = [sum(at - 60.0 < one <= at for one in client.asked) for at in client.asked]
    assert max(within) <= 12
    assert len(client.asked) > 0.7 * 12 * 60, "and most of them are used"
    assert max(later - at for at, later in pairwise(looks)) <= 60.0
    assert job.done.count("observe") > 50, "our own job is asked for once a minute all the same"


def test_nobody_to_launch(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    SchedulerCalls(Scheduler(), clock).perform(Launch(1))
    assert "there is nobody to do Launch" in caplog.text


# ---- our own job ---------------------------------------------------------------------------------------------------


def test_our_job_is_looked_at_more_often_once_there_is_a_successor(clock: FakeClock) -> None:
    job = OwnJob()
    calls = SchedulerCalls(Scheduler(guaranteed_job=job), clock)
    assert come(calls) == [GuaranteedJobSeen(5.0, GuaranteedJob(10.0, 10.0))]
    clock.advance(SELDOM - 1)
    assert calls.poll(6.0) == []
    calls.perform(SubmitSuccessor())
    job.successor = SuccessorJob("8", "PENDING")
    assert come(calls, 7.0) == [SuccessorAnswer(7.0, job_id="8")]
    for _ in range(2):
        clock.advance(OFTEN)
        assert come(calls, 8.0) == [GuaranteedJobSeen(8.0, GuaranteedJob(10.0, 10.0, job.successor))]
    calls.close(run_over=False)
    assert job.done == ["observe", "submit", "observe", "observe"]


def test_a_successor_that_is_being_submitted_this_very_moment_is_ended_too(clock: FakeClock) -> None:
    job = OwnJob()
    calls = SchedulerCalls(Scheduler(guaranteed_job=job), clock)
    calls.perform(SubmitSuccessor())
    calls.close(run_over=True)
    assert job.done == ["submit", "close"]


def test_refused_and_unseen(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    job = OwnJob()
    job.error = "Invalid qos"
    calls = SchedulerCalls(Scheduler(guaranteed_job=job), clock)
    calls.poll(1.0)
    calls.perform(SubmitSuccessor())
    assert come(calls) == [SuccessorAnswer(5.0, error="Invalid qos")]
    assert "could not be asked for: Invalid qos" in caplog.text
    calls.close(run_over=True)
    assert "a successor job may be left: Invalid qos" in caplog.text


# ---- nodes that are given back -------------------------------------------------------------------------------------


def test_nodes_are_given_back_and_not_waited_for_at_the_end(clock: FakeClock) -> None:
    calls = SchedulerCalls(Scheduler(nodes=Nodes()), clock)
    calls.perform(GiveBack(1, 2))
    assert come(calls) == [GivenBack(5.0, 1, 2, ("n3",), again=True)]
    calls.perform(GiveBack(2, 0))
    assert come(calls) == [GivenBack(5.0, 2, 0, error="scontrol: no")]
    calls.perform(GiveBack(3, 0))
    assert calls.poll(5.0) == []
    calls.close(run_over=True)


# ---- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fate", "meant"),
    [
        (("requeued", "job 7 was requeued"), Interrupted(5.0, "job 7 was requeued", requeued=True)),
        (("preempted", "job 7 is being preempted"), Interrupted(5.0, "job 7 is being preempted", requeued=False)),
        (("running", "job 7 runs"), StopAsked(5.0, "cancelled by a signal")),
        (("over", "job 7 is CANCELLED"), StopAsked(5.0, "cancelled: job 7 is CANCELLED")),
    ],
)
def test_what_a_signal_means_is_what_becomes_of_the_job(clock: FakeClock, fate: tuple[Fate, str], meant: Input) -> None:
    calls = SchedulerCalls(Scheduler(fate=lambda: fate), clock)
    calls.signalled("SIGTERM")
    assert come(calls) == [meant]
    calls.signalled("SIGTERM")  # and again: the answer may be another one by then
    assert come(calls) == [meant]
    calls.close(run_over=True)


def test_a_signal_that_nobody_can_explain(clock: FakeClock) -> None:
    def ask() -> Any:
        raise ClusterError("squeue did not answer")

    calls = SchedulerCalls(Scheduler(fate=ask), clock)
    calls.signalled("SIGTERM")
    (meant,) = come(calls)
    assert isinstance(meant, Interrupted)
    assert meant.requeued, "the journal must not call a run over that may be in the queue"
    calls.close(run_over=True)
    alone = SchedulerCalls(Scheduler(), clock)
    alone.signalled("SIGINT")
    assert alone.poll(5.0) == [StopAsked(5.0, "cancelled by SIGINT")]
