"""The guaranteed job's own life on a real cluster: started again by Slurm, its nodes given back, cancelled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paced_samples
import pytest

from liver_slurm import Job, submit
from liver_slurm.base.errors import BadInput
from liver_slurm.config.load import load_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.scheduler.slurm.client import CommandClient
from liver_slurm.scheduler.slurm.standby import SlurmStandbys
from liver_slurm.worker.bootstrap import standby_main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    # Six nodes of one CPU: coordinator, three live workers at most, and two for others.
    pytest.mark.cluster(nodes=6, cpus_per_node=1, gpus_per_node=0, grace=15),
]

JOB = Path(__file__).parents[2] / "configs" / "gpt-tiny.toml"
Eventually = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of tests are not listed among the user's; their steps take a while."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(paced_samples.FOLDER))
    paced_samples.pace(tmp_path / "runs", 0.3)


@pytest.fixture(autouse=True)
def empty_queue(client: CommandClient, eventually: Eventually) -> Iterator[None]:
    """Whatever a test has left in the queue is over when the next one begins."""
    yield
    client.cancel([job.leader for job in client.jobs() if not job.is_over])
    eventually(lambda: all(job.is_over for job in client.jobs()), "an empty queue", 60)


def config(tmp_path: Path, steps: int, *overrides: str) -> JobConfig:
    always = [f"job.run_root={tmp_path}/runs", f"train.steps={steps}", "standby.max_jobs=0", *paced_samples.OVERRIDES]
    return load_job(JOB, [*always, *overrides])


def events(job: Job, name: str) -> list[dict[str, Any]]:
    return [dict(event) for event in job.events() if event["event"] == name]


def reached(job: Job, step: int) -> bool:
    return any(line.step >= step for line in job.metrics())


def scontrol(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=True, capture_output=True, timeout=30)


def test_a_requeued_job_goes_on_from_its_newest_checkpoint(
    tmp_path: Path, client: CommandClient, eventually: Eventually
) -> None:
    # LS-17
    job = submit(config(tmp_path, 40, "checkpoint.every=10"))
    eventually(lambda: reached(job, 12), "12 steps", 90)
    before = [(line.step, line.loss) for line in job.metrics()][:10]
    scontrol("requeue", job.job_id)
    eventually(lambda: events(job, "interrupted"), "the coordinator has left", 30)
    # Until the coordinator has ended it answers itself, that it is interrupted.
    eventually(lambda: job.status()["state"] == "pending", "waiting for Slurm", 30)
    # Slurm makes a requeued job wait for two minutes.
    eventually(lambda: client.jobs([job.job_id])[0].state == "PENDING", "pending again", 30)
    scontrol("update", f"JobId={job.job_id}", "StartTime=now")
    again = eventually(lambda: events(job, "begun_anew"), "a new beginning", 60)[0]
    assert again["step"] >= 10
    assert job.wait(timeout=120)["state"] == "finished", job.status()
    assert len(list(tmp_path.glob("runs/gpt-tiny-*"))) == 1
    worlds = events(job, "world_live")
    assert [world["step"] for world in worlds] == [0, again["step"]]
    assert worlds[1]["generation"] > worlds[0]["generation"]
    found = [(line.step, line.loss) for line in job.metrics()]
    assert [step for step, _ in found] == list(range(1, 41))
    assert found[:10] == before


SMALL = (
    "live.component=[{nodes=1}]",
    'elastic.layouts=["tp1pp1dp1"]',
    "elastic.initial=tp1pp1dp1",
    "checkpoint.every=0",
)


def left(client: CommandClient, job: Job) -> list[str]:
    return [each.job_id for each in client.jobs() if each.comment == str(job.run_dir.path) and not each.is_over]


def test_cancel_ends_all_jobs_of_a_run_and_none_of_another(
    tmp_path: Path, client: CommandClient, eventually: Eventually
) -> None:
    small = config(tmp_path, 100_000, *SMALL, "standby.max_jobs=1")
    job, other = submit(small), submit(small)
    eventually(lambda: reached(job, 1) and reached(other, 1), "both train", 90)
    address = json.loads(job.run_dir.address_file.read_text())
    os.kill(address["pid"], signal.SIGSTOP)  # it does not answer, does not hear of SIGTERM, and ends no standby job
    # Two more than there are nodes for: they wait in the queue.
    source = SlurmStandbys(small, job.run_dir, client, standby_main)
    source.launch(4)
    eventually(lambda: [each for each in source.observe().jobs if each.state == "pending"], "pending standby jobs", 30)
    done = job.cancel()
    assert left(client, job) == [], done
    assert job.status()["state"] == "cancelled"
    assert job.job_id in done
    assert len(left(client, other)) >= 2
    step = other.status()["step"]
    eventually(lambda: reached(other, step + 3), "the other one trains on", 60)
    assert "coordinator ends it" in other.cancel()
    assert left(client, other) == []
    assert other.status()["state"] == "cancelled"
    # One that has hardly been submitted.
    third = submit(small)
    third.cancel()
    assert left(client, third) == []
    assert third.status()["state"] == "cancelled"


def test_nodes_that_a_shrink_frees_are_given_back(
    tmp_path: Path, client: CommandClient, eventually: Eventually
) -> None:
    job = submit(
        config(
            tmp_path,
            100_000,
            "live.component=[{nodes=1}, {nodes=2}, {nodes=1}]",
            'elastic.layouts=["tp1pp1dp1","tp1pp1dp2","tp1pp1dp3","tp1pp1dp4"]',
            "elastic.initial=tp1pp1dp4",
            "standby.max_jobs=2",
        )
    )
    eventually(lambda: reached(job, 1), "it trains", 90)
    parts = {part.component: part.nodes for part in client.jobs([job.job_id])}
    with pytest.raises(BadInput, match="ask for 3 or fewer"):
        job.resize(workers=4, give_back=True)
    # A whole component goes, and the last node of another.
    accepted = job.resize(workers=2, give_back=True)
    assert accepted["give_back"] == {"workers": ["live-3", "live-2"], "nodes": 2, "reason": ""}
    given = sorted((*parts[3], parts[2][1]))
    eventually(lambda: len(events(job, "nodes_given_back")) == 2, "two nodes given back", 60)
    assert sorted(node for event in events(job, "nodes_given_back") for node in event["nodes"]) == given
    assert [node.name for node in client.nodes("live") if node.state == "idle" and node.name in given] == given
    held = {part.component: part.nodes for part in client.jobs([job.job_id]) if not part.is_over}
    assert held == {0: parts[0], 1: parts[1], 2: parts[2][:1]}
    step = job.status()["step"]
    eventually(lambda: reached(job, step + 3), "the run trains on", 60)
    # The world grows again: by standbys, on nodes that were given back or were idle before.
    job.resize(workers=4)
    eventually(lambda: job.status()["layout"] == "tp1pp1dp4", "a world with standbys", 90)
    standbys = {node for each in job.status()["standby_jobs"] for node in each["nodes"]}
    assert standbys & set(given)
    # Slurm without accounting takes nodes of a component once: what is left of it goes as a whole.
    accepted = job.resize(workers=1, give_back=True)
    assert accepted["give_back"] == {"workers": ["live-1"], "nodes": 1, "reason": ""}
    eventually(lambda: len(events(job, "nodes_given_back")) == 3, "the third node", 60)
    assert job.status()["layout"] == "tp1pp1dp1"
    held = {part.component: part.nodes for part in client.jobs([job.job_id]) if not part.is_over}
    assert held == {0: parts[0], 1: parts[1]}
    assert not events(job, "nodes_kept")
    job.cancel()
    steps = [line.step for line in job.metrics()]
    assert steps == list(range(1, len(steps) + 1))
    assert [world["layout"] for world in events(job, "world_live")][::3] == ["tp1pp1dp4", "tp1pp1dp1"]
