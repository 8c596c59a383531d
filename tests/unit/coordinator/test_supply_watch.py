"""The standby source's thread: a slow or silent scheduler holds nothing up and proves nothing."""

from __future__ import annotations

import threading

from coordinator_lab import until

from liver_slurm.base.errors import ClusterError
from liver_slurm.base.query_budget import QueryBudget
from liver_slurm.coordinator.core.io import CapacitySeen, Input, LaunchRefused
from liver_slurm.coordinator.runtime.background_calls import SupplyWatch
from liver_slurm.scheduler.ports import CapacitySnapshot, StandbyJob


class Source:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.jobs: list[str] = []
        self.silent = False
        self.may_answer = threading.Event()
        self.may_answer.set()

    def observe(self) -> CapacitySnapshot:
        self.may_answer.wait(10)
        if self.silent:
            raise ClusterError("slurmctld does not answer")
        return CapacitySnapshot(time=1.0, jobs=tuple(StandbyJob(one, "running") for one in self.jobs))

    def launch(self, count: int, unit: int, partition: str) -> list[str]:
        if self.silent:
            raise ClusterError("refused")
        self.jobs += [f"j{len(self.jobs)}" for _ in range(count)]
        return self.jobs

    def release(self, job_id: str) -> None:
        self.jobs.remove(job_id)

    def close(self) -> None:
        self.jobs.clear()


def come(watch: SupplyWatch) -> list[Input]:
    return until(lambda: watch.poll(5.0), "an answer")


def test_a_look_after_a_launch_sees_the_launched_jobs() -> None:
    source = Source()
    watch = SupplyWatch(source, interval=0.0)
    assert come(watch) == [CapacitySeen(5.0, CapacitySnapshot(1.0, ()))]
    watch.launch(2, 0, "a")
    until(
        lambda: any(isinstance(seen, CapacitySeen) and len(seen.supply.jobs) == 2 for seen in watch.poll(5.0)), "jobs"
    )
    watch.release("j0")
    watch.close()
    assert source.jobs == []


def test_a_slow_scheduler_does_not_block() -> None:
    source = Source()
    source.may_answer.clear()
    watch = SupplyWatch(source, interval=0.0)
    assert watch.poll(1.0) == watch.poll(2.0) == []
    source.may_answer.set()
    assert come(watch)
    watch.close()


def test_a_silent_scheduler_makes_us_blind_and_a_refused_launch_is_said() -> None:
    source = Source()
    source.jobs = ["kept"]
    watch = SupplyWatch(source, interval=0.0)
    come(watch)
    source.silent = True

    def blind() -> bool:
        return any(isinstance(seen, CapacitySeen) and seen.supply.blind is not None for seen in watch.poll(5.0))

    until(blind, "blind")
    watch.launch(1, 0, "a")
    refused = until(lambda: [one for one in watch.poll(6.0) if isinstance(one, LaunchRefused)], "refused")
    assert refused == [LaunchRefused(6.0, "refused")]
    watch.close()


def test_the_budget_spaces_the_looks_and_is_told() -> None:
    source = Source()
    budget = QueryBudget(per_minute=0.001)

    def ask() -> CapacitySnapshot:
        budget.spend(3)
        return CapacitySnapshot(time=1.0, jobs=())

    source.observe = ask  # type: ignore[method-assign]
    watch = SupplyWatch(source, interval=0.0, budget=budget)
    (seen,) = come(watch)
    assert isinstance(seen, CapacitySeen)
    assert seen.supply.queries == 3
    # A launch, which is no question, is not held up; when it is done, no further look was taken.
    watch.launch(1, 0, "a")
    until(lambda: source.jobs, "a job")
    watch.poll(6.0)
    watch.close()
    assert budget.last_minute() == 3
