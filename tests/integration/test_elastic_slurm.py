"""The whole product on a real cluster: a job grows, gives nodes back when a higher tier wants them, and trains on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import paced_samples
import psutil
import pytest

from liver_slurm import Job, submit
from liver_slurm.app.local_run import run_local
from liver_slurm.config.load import load_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.rundir.registry import create_run
from liver_slurm.scheduler.slurm.client import CommandClient

pytestmark = [
    pytest.mark.slurm,
    # Five nodes of one CPU: coordinator, two live workers, and two for standbys.
    pytest.mark.cluster(nodes=5, cpus_per_node=1, gpus_per_node=0, grace=15),
]

JOB = Path(__file__).parents[2] / "configs" / "gpt-tiny.toml"
STEPS = 160
CHEAP = ("train.micro_batch_size=4", *paced_samples.OVERRIDES)
ACTING, WAITING = 0.25, 1.5
"""Seconds of a step while nodes are taken, and while standbys start, which takes long and needs no steps."""
Eventually = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of tests are not listed among the user's; a test sets their pace."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(paced_samples.FOLDER))


def config(tmp_path: Path, steps: int, **options: Any) -> JobConfig:
    overrides = [
        f"job.run_root={tmp_path}/runs",
        f"train.steps={steps}",
        "standby.max_jobs=2",
        'elastic.layouts=["tp1pp1dp2","tp1pp1dp3","tp2pp1dp2"]',
        "checkpoint.every=0",
        *CHEAP,
    ]
    paced_samples.pace(f"{tmp_path}/runs", WAITING)
    return load_job(JOB, overrides + [f"{key}={value}" for key, value in options.items()])


def events(job: Job, name: str) -> list[dict[str, Any]]:
    return [dict(event) for event in job.events() if event["event"] == name]


def to(job: Job, layout: str) -> list[dict[str, Any]]:
    return [event for event in events(job, "reconfiguration_committed") if event["to"] == layout]


def prod_job(folder: Path, nodes: int, seconds: int) -> str:
    return subprocess.run(
        [
            "sbatch",
            "--parsable",
            "-o",
            "/dev/null",
            "-p",
            "prod",
            f"-N{nodes}",
            "--exclusive",
            "--wrap",
            f"sleep {seconds}",
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=folder,
    ).stdout.strip()


@pytest.mark.timeout(600)
def test_grow_be_preempted_and_grow_again(tmp_path: Path, client: CommandClient, eventually: Eventually) -> None:
    # LS-1, LS-4, LS-18
    job = submit(config(tmp_path, steps=STEPS))
    pace = partial(paced_samples.pace, tmp_path / "runs")
    try:
        eventually(lambda: to(job, "tp2pp1dp2"), "grown to 4 workers", 90)
        pace(ACTING)
        before = {worker["worker"]: worker["pid"] for worker in job.status()["workers"]}
        wanted = prod_job(tmp_path, 2, 5)
        eventually(lambda: events(job, "notice"), "a notice", 20)
        eventually(lambda: client.jobs(ids=[wanted])[0].state == "RUNNING", "the prod job runs", 20)
        # Within the grace time of 15 s, and not by its end: the leaving workers went by themselves.
        shrunk = eventually(lambda: to(job, "tp1pp1dp2"), "shrunk to 2 workers", 20)[0]
        assert shrunk["digests_checked"] > 0
        after = {worker["worker"]: worker["pid"] for worker in job.status()["workers"]}
        assert after == {name: pid for name, pid in before.items() if name.startswith("live-")}
        pace(WAITING)
        eventually(lambda: len(to(job, "tp2pp1dp2")) == 2, "grown again", 90)
        pace(0)
        assert job.wait(timeout=240)["state"] == "finished"
    finally:
        job.cancel()
    eventually(lambda: all(each.is_over for each in client.jobs()), "an empty queue", 60)
    undisturbed = losses_without_resize(tmp_path)
    found = [(line.step, line.loss) for line in job.metrics()]
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    assert [loss for _, loss in found] == pytest.approx(undisturbed, rel=1e-6)


def losses_without_resize(tmp_path: Path) -> list[float]:
    options = [f"job.run_root={tmp_path}/undisturbed", f"train.steps={STEPS}", "standby.max_jobs=0"]
    plain = load_job(JOB, [*options, 'elastic.layouts=["tp1pp1dp2"]', "checkpoint.every=0", *CHEAP], workers=2)
    run_dir = create_run(plain)
    assert run_local(plain, run_dir, 2, 0) == 0
    from liver_slurm.rundir.metrics import read_metrics

    return [line.loss for line in read_metrics(run_dir.metrics)]


def test_cancel_ends_everything_that_was_started(tmp_path: Path, client: CommandClient, eventually: Eventually) -> None:
    # LS-26
    job = submit(config(tmp_path, steps=100_000))
    eventually(lambda: to(job, "tp2pp1dp2"), "grown to 4 workers", 90)
    pids = [worker["pid"] for worker in job.status()["workers"]]
    other = prod_job(tmp_path, 1, 0)
    job.cancel()
    eventually(lambda: not [each for each in client.jobs() if not each.is_over], "an empty queue", 30)
    assert not [pid for pid in pids if psutil.pid_exists(pid) and _is_ours(pid)]
    assert job.status()["state"] == "cancelled"
    assert other


def _is_ours(pid: int) -> bool:
    return pid != os.getpid() and "liver_slurm" in " ".join(psutil.Process(pid).cmdline())


def test_two_unlike_components_are_one_world(tmp_path: Path, client: CommandClient) -> None:
    two = load_job(
        JOB,
        [
            f"job.run_root={tmp_path}/runs",
            "train.steps=5",
            "standby.max_jobs=0",
            "elastic.layouts=['tp1pp1dp3']",
            "elastic.initial=tp1pp1dp3",
            "live.component=[{nodes=1, mem='200M'}, {nodes=2, mem='100M'}]",
        ],
    )
    job = submit(two)
    assert job.wait(timeout=90)["state"] == "finished", job.status()
    assert [line.step for line in job.metrics()] == [1, 2, 3, 4, 5]
    assert client.jobs(ids=[str(job.job_id)]) is not None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_standby_jobs_that_die_as_they_start_are_not_started_all_the_time(
    tmp_path: Path, client: CommandClient, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node without the program, say. Once it is repaired, the run grows."""
    broken = tmp_path / "broken" / "sitecustomize.py"
    broken.parent.mkdir()
    broken.write_text("import os\nif os.environ.get('SLURM_JOB_PARTITION') == 'scavenger':\n    os._exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(broken.parent), str(paced_samples.FOLDER)]))
    job = submit(config(tmp_path, 10_000, **{"standby.back_off": 2.0, "standby.poll": 1.0}))
    try:
        eventually(lambda: any(one["in_a_row"] >= 5 for one in events(job, "standby_failed")), "5 failures", 240)
        failures, launches = events(job, "standby_failed"), events(job, "standby_launch")
        counts = [one["in_a_row"] for one in failures]
        assert counts == sorted(counts), "those that follow within seconds count once"
        assert set(counts) == set(range(1, max(counts) + 1))
        assert {one["in_a_row"]: one["alone_s"] for one in failures if one["in_a_row"] <= 5} == {
            1: 0.0, 2: 0.0, 3: 2.0, 4: 4.0, 5: 8.0,
        }  # fmt: skip
        tried = [one["time"] for one in failures if one["alone_s"]]
        assert all(sum(tried[0] < each["time"] <= at for each in launches) <= number for number, at in enumerate(tried))
        assert all(each["count"] == 1 for each in launches if each["time"] > tried[0]), "one is tried"
        for one in failures:
            assert not any(one["time"] < each["time"] < one["time"] + one["alone_s"] for each in launches)
        broken.unlink()
        eventually(lambda: to(job, "tp2pp1dp2"), "grown once it was repaired", 240)
    finally:
        job.cancel()
    eventually(lambda: all(each.is_over for each in client.jobs()), "an empty queue", 60)
