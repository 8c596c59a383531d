"""A cluster whose free nodes are those of a trace, as Slurm's adapter sees it."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from simulation_lab import elastic_job, setting, trace

from liver_slurm.base.errors import ClusterError
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.ports import CapacitySnapshot
from liver_slurm.scheduler.slurm.standby import SlurmStandbys
from liver_slurm.simulation.clock import EventQueue
from liver_slurm.simulation.cluster import Job, SimulatedCluster
from liver_slurm.simulation.setting import BEGIN, conditions, parse_queue_wait
from liver_slurm.simulation.trace import Trace


class Lab:
    """A cluster, the product's adapter on it, and what becomes of the jobs."""

    def __init__(self, made: Trace, notice: float = 60.0, wait: str = "0", **standby: Any) -> None:
        config = elastic_job(**standby)
        here = setting(made, notice, queue_wait=parse_queue_wait(wait))
        self.events = EventQueue(BEGIN)
        self.cluster = SimulatedCluster(self.events, made, conditions(config, here, Random(0)))
        self.cluster.attach(self)
        self.adapter = SlurmStandbys(
            config, RunDir(Path("/r")), self.cluster, str, self.events.now, launcher=self.cluster.launch
        )
        self.told: list[tuple[float, str, str]] = []

    def note(self, what: str, job: Job) -> None:
        self.told.append((self.events.now() - BEGIN, what, job.job_id))

    def started(self, job: Job) -> None:
        self.note("started", job)

    def noticed(self, job: Job, signal: str) -> None:
        self.note(f"{signal}, killed at {job.ends_at - BEGIN:g}", job)

    def killed(self, job: Job) -> None:
        self.note("killed", job)

    def look(self, at: float) -> CapacitySnapshot:
        self.events.run_until(BEGIN + at)
        return self.adapter.observe()

    def room(self, at: float) -> int:
        return self.look(at).room[0].jobs


def test_idle_nodes_are_those_of_the_trace() -> None:
    lab = Lab(trace(100.0, ("a", 0, 100), ("b", 10, 80)), notice=20.0)
    assert [lab.room(at) for at in (5.0, 15.0, 59.0, 65.0, 85.0)] == [1, 2, 2, 1, 1], "none starts on b that goes soon"


def test_a_job_starts_on_an_idle_node_and_is_preempted_with_notice() -> None:
    lab = Lab(trace(100.0, ("a", 0, 80)), notice=20.0)
    lab.look(5.0)
    assert lab.adapter.launch(1, 0, "spot") == ["1"]
    assert lab.room(6.0) == 0
    (job,) = lab.look(61.0).jobs
    assert (job.state, job.nodes) == ("running", ("a",))
    assert job.notice is not None
    assert (job.notice.kind, job.notice.deadline) == ("preemption", BEGIN + 80.0)
    assert lab.look(90.0).jobs == ()
    assert lab.told == [(5.0, "started", "1"), (60.0, "SIGTERM, killed at 80", "1"), (80.0, "killed", "1")]


def test_without_notice_a_node_is_gone_at_once() -> None:
    lab = Lab(trace(100.0, ("a", 0, 80)), notice=0.0)
    lab.look(5.0)
    lab.adapter.launch(1, 0, "spot")
    assert lab.look(79.0).jobs[0].notice is None
    lab.look(90.0)
    assert lab.told[1:] == [(80.0, "killed", "1")]


def test_a_sudden_death_has_no_notice_and_the_node_comes_back() -> None:
    made = trace(300.0, ("a", 0, 80), sudden=True)
    lab = Lab(Trace("t", 300.0, (*made.spans, *trace(300.0, ("a", 200, 300)).spans)), notice=20.0)
    lab.look(5.0)
    lab.adapter.launch(1, 0, "spot")
    assert [lab.room(at) for at in (70.0, 100.0, 250.0)] == [0, 0, 1]
    assert lab.told[1:] == [(80.0, "killed", "1")]


def test_jobs_wait_in_the_queue() -> None:
    lab = Lab(trace(100.0, ("a", 0, 100)), wait="30")
    lab.look(5.0)
    lab.adapter.launch(2, 0, "spot")
    assert [job.state for job in lab.look(10.0).jobs] == ["pending", "pending"]
    lab.look(50.0)
    assert lab.told == [(35.0, "started", "1")], "the other one has no node"
    lab.adapter.release("2")
    assert [job.job_id for job in lab.look(60.0).jobs] == ["1"]


def test_a_job_that_is_released_ends_when_its_processes_have() -> None:
    lab = Lab(trace(100.0, ("a", 0, 100)))
    lab.look(5.0)
    lab.adapter.launch(1, 0, "spot")
    lab.look(10.0)
    lab.adapter.release("1")
    assert lab.look(11.0).jobs[0].state == "ending"
    assert lab.told[-1] == (10.0, "SIGTERM, killed at 40", "1")
    lab.cluster.left("1")
    assert lab.look(12.0).jobs == ()
    assert lab.room(13.0) == 1
    lab.look(50.0)
    assert len(lab.told) == 2, "there is nothing left to kill"


def test_the_time_limit_ends_a_job() -> None:
    lab = Lab(trace(1000.0, ("a", 0, 1000)), time="00:02:00")
    lab.look(5.0)
    lab.adapter.launch(1, 0, "spot")
    assert lab.look(100.0).jobs[0].notice is not None
    lab.look(200.0)
    assert lab.told[1:] == [(95.0, "SIGUSR2, killed at 125", "1"), (125.0, "killed", "1")]


def test_a_job_of_two_nodes_goes_as_a_whole() -> None:
    lab = Lab(trace(100.0, ("a", 0, 80), ("b", 0, 100), ("c", 0, 100)), notice=20.0, nodes_per_job=2)
    lab.look(5.0)
    lab.adapter.launch(1, 0, "spot")
    assert lab.look(6.0).jobs[0].nodes == ("a", "b")
    lab.look(85.0)
    assert lab.told[1:] == [(60.0, "SIGTERM, killed at 80", "1"), (80.0, "killed", "1")]
    assert lab.room(86.0) == 1, "b and c"


def test_what_nothing_asks_is_refused() -> None:
    cluster = Lab(trace(9.0, ("a", 0, 9))).cluster
    with pytest.raises(ClusterError, match="a simulated cluster does not do this"):
        cluster.update_job("1", {})
