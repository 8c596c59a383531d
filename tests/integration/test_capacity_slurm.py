"""Capacity on a real cluster: queue and probe, sizes, release, back-off; and a run with a policy of another package."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paced_samples
import pytest

from liver_slurm import Job, submit
from liver_slurm.config.load import load_job
from liver_slurm.config.schema import ElasticSection, JobConfig, ModelSection, StandbySection, TrainSection, UnitSection
from liver_slurm.coordinator.core import standby_scaling
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.client import CommandClient
from liver_slurm.scheduler.slurm.standby import SlurmStandbys

pytestmark = [pytest.mark.slurm, pytest.mark.cluster(nodes=4, cpus_per_node=2, gpus_per_node=0, grace=10)]

JOB = Path(__file__).parents[2] / "configs" / "gpt-tiny.toml"
Eventually = Callable[..., Any]


def stand_by(run_dir: str) -> None:
    """A standby that does nothing until it is told to go."""
    threading.Event().wait()


class Capacity:
    """The decision and the standby source in a loop, without a run around them: two guaranteed workers."""

    def __init__(self, client: CommandClient, path: Path, layouts: tuple[str, ...], **standby: Any) -> None:
        path.mkdir(exist_ok=True)
        options = {"partitions": ("scavenger",), "max_jobs": 4, "time": "10:00", "hold": 3.0, **standby}
        self.config = JobConfig(
            model=ModelSection(num_layers=8, hidden_size=64, num_attention_heads=8),
            train=TrainSection(steps=1, seq_length=8, global_batch_size=8),
            standby=StandbySection(**options),
            elastic=ElasticSection(layouts=layouts),
        )
        self.run_dir = RunDir(path)
        self.source = SlurmStandbys(self.config, self.run_dir, client, task=stand_by)
        self.asked = 0
        self.useless_since: Any = {}

    def look(self) -> list[tuple[str, int, str]]:
        """One turn; returns (state, unit, partition) of each job that was there."""
        capacity = self.source.observe()
        view = standby_scaling.View(time.time(), capacity, 2, asked=self.asked, useless_since=self.useless_since)
        decision, _ = standby_scaling.decide(view, self.config)
        self.useless_since = decision.useless_since
        for job in decision.end:
            self.source.release(job)
        for order in decision.start:
            self.source.launch(order.count, order.unit, order.partition)
        return sorted((job.state, job.unit, job.partition) for job in capacity.jobs)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this module imports is found on the nodes too, where standbys of its own function import it."""
    monkeypatch.setenv("PYTHONPATH", str(paced_samples.FOLDER))


@pytest.fixture
def make(client: CommandClient, tmp_path: Path, eventually: Eventually) -> Iterator[Callable[..., Capacity]]:
    yield lambda layouts, **options: Capacity(client, tmp_path / "run", layouts, **options)
    client.cancel([job.job_id for job in client.jobs() if not job.is_over])
    eventually(lambda: all(node.state == "idle" for node in client.nodes("live")), "all nodes are idle again", 60)


def sbatch(path: Path, *options: str, body: str = "sleep 1000") -> str:
    argv = ["sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", body]
    return subprocess.run(argv, check=True, capture_output=True, text=True, cwd=path, timeout=30).stdout.strip()


def fill(client: CommandClient, path: Path, nodes: int, eventually: Eventually) -> str:
    job = sbatch(path, "-plive", f"-N{nodes}", "--exclusive")
    eventually(lambda: client.jobs([job])[0].state == "RUNNING", "the nodes are taken")
    return job


def test_probing_leaves_nothing_in_the_queue(
    client: CommandClient, tmp_path: Path, make: Callable[..., Capacity], eventually: Eventually
) -> None:
    guest = fill(client, tmp_path, 3, eventually)
    own = make(("tp1pp1dp2", "tp1pp1dp4"), cpus_per_task=2)
    assert own.look() == own.look() == [], "one that runs would wait for another"
    own = make(("tp1pp1dp2", "tp1pp1dp3", "tp1pp1dp4"), cpus_per_task=2)
    assert own.look() == []
    eventually(lambda: own.look() == [("running", 0, "scavenger")], "one node is idle, one standby runs")
    client.cancel([guest])
    eventually(lambda: own.look() == [("running", 0, "scavenger")] * 2, "as many as are useful, and no more")


def test_queueing_lets_slurm_start_them_and_extra_ones_are_ended(
    client: CommandClient, tmp_path: Path, make: Callable[..., Capacity], eventually: Eventually
) -> None:
    guest = fill(client, tmp_path, 3, eventually)
    own = make(("tp1pp1dp2",), cpus_per_task=2, launch="queue")
    assert own.look() == own.look() == [], "one layout, nobody asks: no standby is useful"
    own.asked = 5
    eventually(
        lambda: own.look() == [("pending", 0, "scavenger")] * 2 + [("running", 0, "scavenger")], "two of three wait"
    )
    client.cancel([guest])
    # Nobody looks meanwhile: Slurm starts them by itself.
    eventually(lambda: [job.state for job in own.source.observe().jobs] == ["running"] * 3, "all three run")
    own.asked = 3
    eventually(lambda: own.look() == [("running", 0, "scavenger")], "two are of no use any more")
    own.asked = 0
    eventually(lambda: own.look() == [], "nor is the third")


def test_sizes_features_and_excluded_nodes(
    client: CommandClient, make: Callable[..., Capacity], eventually: Eventually
) -> None:
    subprocess.run(["scontrol", "update", "NodeName=n2", "ActiveFeatures=big", "AvailableFeatures=big"], check=True)
    try:
        pair = UnitSection(tasks_per_node=2, constraint="big", max_jobs=1)
        one = UnitSection(exclude="n1,n2,n3", cpus_per_task=2)
        own = make(("tp1pp1dp2", "tp1pp1dp5"), unit=(pair, one))
        there = [("running", 0, "scavenger"), ("running", 1, "scavenger")]
        eventually(lambda: own.look() == there, "two workers on the big node and one on the only one that is left")
        jobs = {job.unit: job for job in own.source.observe().jobs}
        assert (jobs[0].nodes, jobs[1].nodes) == (("n2",), ("n4",))
        # A restarted coordinator knows them apart.
        again = SlurmStandbys(own.config, own.run_dir, client, task=stand_by)
        assert {job.job_id: job.unit for job in again.observe().jobs} == {
            job.job_id: unit for unit, job in jobs.items()
        }
    finally:
        subprocess.run(["scontrol", "update", "NodeName=n2", "ActiveFeatures=", "AvailableFeatures="], check=True)


# ---- a run ---------------------------------------------------------------------------------------------------------

POLICY = """
from liver_slurm.plugins.policies import hysteresis

def patient(snapshot, config):
    decision, reason = hysteresis.policy(snapshot, config)
    return decision, "patient: " + reason
"""


@pytest.fixture
def their_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Another package, with a policy behind an entry point; its name."""
    folder = tmp_path / "site"
    info = folder / "their_policies-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "their_policies.py").write_text(POLICY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-policies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[liver_slurm.policies]\npatient = their_policies:patient\n")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{paced_samples.FOLDER}")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return "patient"


def events(job: Job, name: str) -> list[dict[str, Any]]:
    return [dict(event) for event in job.events() if event["event"] == name]


def standby_jobs(job: Job) -> list[str]:
    return [one["job_id"] for one in job.status()["standby_jobs"] if one["state"] != "ending"]


@pytest.fixture
def run(their_policy: str, tmp_path: Path, client: CommandClient, eventually: Eventually) -> Iterator[Job]:
    """A run of two live workers that may have three more, from standby jobs of two sizes."""
    overrides = [
        f"job.run_root={tmp_path}/runs",
        "train.steps=100000",
        "checkpoint.every=0",
        "live.component=[{nodes=1, tasks_per_node=2}]",
        'elastic.layouts=["tp1pp1dp2","tp1pp1dp5"]',
        f"standby.policy={their_policy}",
        "standby.hold=10",
        "standby.poll=0.5",
        "standby.unit=[{tasks_per_node=2}, {tasks_per_node=1}]",
        *paced_samples.OVERRIDES,
    ]
    paced_samples.pace(tmp_path / "runs", 0.3)
    job = submit(load_job(JOB, overrides))
    try:
        yield job
    finally:
        job.cancel()
    eventually(lambda: all(each.is_over for each in client.jobs()), "an empty queue", 60)


def grow(run: Job, eventually: Eventually) -> dict[str, Any]:
    return eventually(lambda: events(run, "reconfiguration_committed"), "grown", 120)[0]  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_policy_of_another_package_joins_two_sizes(
    run: Job, tmp_path: Path, client: CommandClient, eventually: Eventually
) -> None:
    # Two and one standby workers come, and a prod job takes the two before they have stayed long enough.
    ready = eventually(lambda: events(run, "standby_ready")[2:] and events(run, "standby_ready"), "three workers", 120)
    jobs = [event["worker"].rpartition("-")[0] for event in ready]
    assert sorted(jobs.count(job) for job in set(jobs)) == [1, 2]
    assert "less than 10 s" in run.status()["reason"]
    assert run.status()["reason"].startswith("patient: ")
    prod = sbatch(tmp_path, "-pprod", "-N2", "--ntasks-per-node=2", body="sleep 1")
    eventually(lambda: events(run, "notice"), "a notice", 20)
    eventually(lambda: client.jobs([prod])[0].is_over, "the prod job is over", 30)
    assert events(run, "reconfiguration_started") == [], "not resized for nodes that did not stay"

    # Three come again, in jobs of whatever sizes have room, and stay: one world with the live workers.
    grown = grow(run, eventually)
    assert (grown["to"], grown["cause"], len(grown["joiners"])) == ("tp1pp1dp5", "capacity", 3)
    assert grown["reason"].startswith("patient: ")


@pytest.mark.long
def test_a_pinned_run_gives_its_standbys_back_and_a_request_brings_them_again(run: Job, eventually: Eventually) -> None:
    grow(run, eventually)
    assert run.resize("tp1pp1dp2")["waits_for_workers"] == 0
    eventually(lambda: len(events(run, "reconfiguration_committed")) == 2, "shrunk", 60)
    eventually(lambda: standby_jobs(run) == [], "no standby job is left", 60)
    assert len(events(run, "standby_release")) == 2

    assert run.resize("tp1pp1dp5")["waits_for_workers"] == 3
    again = eventually(lambda: events(run, "reconfiguration_committed")[2:], "grown as requested", 120)[0]
    assert (again["to"], again["cause"]) == ("tp1pp1dp5", "request")
