"""Standby jobs on a real cluster: launched through submitit, seen by our own client, preempted by a prod job."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import ClusterError
from liver_slurm.config.schema import JobConfig, StandbySection
from liver_slurm.devcluster.lifecycle import Cluster
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.ports import CapacitySnapshot, Headroom, StandbyJob
from liver_slurm.scheduler.slurm.client import CommandClient
from liver_slurm.scheduler.slurm.headroom import Unit, idle_units
from liver_slurm.scheduler.slurm.standby import SlurmStandbys

GRACE = 3
pytestmark = [pytest.mark.slurm, pytest.mark.cluster(nodes=3, cpus_per_node=2, gpus_per_node=1, grace=GRACE)]


def stand_in(run_dir: str) -> None:
    """What a task runs in place of the worker: notes what it sees, and leaves on the first notice."""
    rank = os.environ["SLURM_PROCID"]
    note = Path(run_dir) / f"{os.environ['SLURM_JOB_ID']}-{rank}"
    told = threading.Event()
    seen: list[str] = []

    def notice(number: int, frame: object) -> None:
        seen.append(f"{signal.Signals(number).name} {time.time()}")
        if number != signal.SIGCONT:
            told.set()

    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, notice)
    names = ("SLURM_JOB_NUM_NODES", "SLURM_CPUS_PER_TASK", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SETUP_DONE")
    note.write_text("\n".join(f"{name}={os.environ.get(name)}" for name in names) + "\n")
    if (Path(run_dir) / "stay").exists():
        while True:
            told.wait()
            note.with_suffix(".notice").write_text("\n".join(seen))
            told.clear()
    told.wait()
    note.with_suffix(".notice").write_text("\n".join(seen))


class Standbys:
    """A source, and what its jobs have noted."""

    def __init__(self, client: CommandClient, path: Path, **options: Any) -> None:
        self.dir = RunDir(path)
        path.mkdir(exist_ok=True)
        values = {"partitions": ("scavenger",), "max_jobs": 4, "time": "10:00", **options}
        self.config = JobConfig(standby=StandbySection(**values))
        self.source = SlurmStandbys(self.config, self.dir, client, task=stand_in)

    def note(self, job: str, rank: int = 0, suffix: str = "") -> str:
        path = self.dir.path / f"{job}-{rank}{suffix}"
        return path.read_text() if path.exists() else ""

    def job(self, job_id: str) -> StandbyJob | None:
        return next((job for job in self.source.observe().jobs if job.job_id == job_id), None)


@pytest.fixture
def make(client: CommandClient, tmp_path: Path, eventually: Callable[..., Any]) -> Iterator[Callable[..., Standbys]]:
    """Makes sources; their jobs, and all others, are over at the end of the test."""

    def build(**options: Any) -> Standbys:
        return Standbys(client, tmp_path / "run", **options)

    yield build
    running = [job.job_id for job in client.jobs() if not job.is_over]
    subprocess.run(["scancel", "--signal=KILL", "--full", *running], check=False, timeout=30)
    client.cancel(running)
    eventually(lambda: all(node.state == "idle" for node in client.nodes("live")), "all nodes are idle again")


def sbatch(path: Path, *options: str, body: str = "sleep 1000") -> str:
    script = path / "job.sh"
    script.write_text(f"#!/bin/bash\n{body}\n")
    argv = ["sbatch", "--parsable", "--output=/dev/null", *options, str(script)]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def scontrol(*arguments: str) -> None:
    subprocess.run(["scontrol", *arguments], check=True, timeout=30)


def test_idle_units_as_nodes_fill_up(
    client: CommandClient, tmp_path: Path, make: Callable[..., Standbys], eventually: Callable[..., Any]
) -> None:
    def units() -> tuple[int, int, int, int]:
        nodes = client.nodes("scavenger")
        kinds = (Unit(1, 1), Unit(1, 2), Unit(1, 1, gpus=1), Unit(2, 2))
        return tuple(idle_units(nodes, kind) for kind in kinds)  # type: ignore[return-value]

    assert units() == (6, 3, 3, 1)
    sbatch(tmp_path, "-plive", "-n1")
    eventually(lambda: units() == (5, 2, 3, 1), "one CPU is taken")
    sbatch(tmp_path, "-plive", "-n1", "-c2", "--gres=gpu:1", "-wn3")
    eventually(lambda: units() == (3, 1, 2, 0), "a whole node and its GPU are taken")
    scontrol("update", "NodeName=n2", "State=DRAIN", "Reason=test")
    try:
        eventually(lambda: units()[0] == 1, "a drained node does not count")
    finally:
        scontrol("update", "NodeName=n2", "State=RESUME")


def test_launch_observe_release(
    client: CommandClient, make: Callable[..., Standbys], eventually: Callable[..., Any]
) -> None:
    standbys = make(nodes_per_job=2, tasks_per_node=2, gpus_per_task=0)
    before = standbys.source.observe()
    assert (room(before), before.jobs, before.blind) == ([1], (), None)

    ids = standbys.source.launch(2)
    eventually(lambda: [standbys.note(ids[0], rank) for rank in range(4)].count("") == 0, "4 tasks run")
    capacity = standbys.source.observe()
    states = {job.job_id: job.state for job in capacity.jobs}
    assert states == {ids[0]: "running", ids[1]: "pending"}
    assert [len(job.nodes) for job in capacity.jobs if job.state == "running"] == [2]
    assert room(capacity) == [0]
    assert all(job.notice is None for job in capacity.jobs)
    assert "SLURM_JOB_NUM_NODES=2" in standbys.note(ids[0])
    assert "OMP_NUM_THREADS=1" in standbys.note(ids[0])

    standbys.source.release(ids[1])
    standbys.source.release(ids[0])
    eventually(lambda: standbys.source.observe().jobs == (), "both are gone")
    assert "SIGTERM" in standbys.note(ids[0], suffix=".notice")
    standbys.source.release(ids[0])  # a job that is over is no error
    assert room(standbys.source.observe()) == [1]


def test_a_restarted_coordinator_finds_and_closes_them(
    client: CommandClient, make: Callable[..., Standbys], eventually: Callable[..., Any]
) -> None:
    first = make()
    ids = first.source.launch(2)
    eventually(lambda: [job.state for job in first.source.observe().jobs] == ["running"] * 2, "both run")
    second = make()
    assert {job.job_id for job in second.source.observe().jobs} == set(ids)
    stranger = SlurmStandbys(second.config, RunDir(Path("/elsewhere/run")), client, task=stand_in)
    assert stranger.observe().jobs == (), "same name, another run"
    stranger.close()
    assert len(second.source.observe().jobs) == 2
    second.source.close()
    eventually(lambda: second.source.observe().jobs == (), "both are gone")


def test_preemption_signals_the_steps_and_shows_in_the_record(
    client: CommandClient, tmp_path: Path, make: Callable[..., Standbys], eventually: Callable[..., Any]
) -> None:
    standbys = make(cpus_per_task=2)
    (standbys.dir.path / "stay").touch()
    ids = standbys.source.launch(3)
    eventually(lambda: all(standbys.note(job) for job in ids), "three standbys run")
    sbatch(tmp_path, "-pprod", "-N1", "-n1", "-c2")
    wanted = time.time()

    job = eventually(
        lambda: next((job for job in standbys.source.observe().jobs if job.notice is not None), None), "PreemptTime"
    )
    assert time.time() - wanted < 10
    assert (job.state, job.notice.kind, job.grace) == ("running", "preemption", GRACE)
    # The grace time runs from then on; Slurm's clock ticks in whole seconds.
    assert -1.5 <= job.notice.deadline - (wanted + GRACE) <= 5
    eventually(lambda: "SIGTERM" in standbys.note(job.job_id, suffix=".notice"), "the step was signalled", timeout=5)
    untouched = [one for one in ids if one != job.job_id]
    assert not any(standbys.note(one, suffix=".notice") for one in untouched), "one node was wanted, one was taken"


def test_a_standby_that_leaves_on_the_signal_hands_its_node_over_at_once(
    client: CommandClient, tmp_path: Path, make: Callable[..., Standbys], eventually: Callable[..., Any]
) -> None:
    standbys = make(cpus_per_task=2)
    ids = standbys.source.launch(3)
    eventually(lambda: all(standbys.note(job) for job in ids), "three standbys run")
    start = time.monotonic()
    prod = sbatch(tmp_path, "-pprod", "-N1", "-n1", "-c2")
    eventually(lambda: client.jobs([prod])[0].state == "RUNNING", "the prod job runs")
    assert time.monotonic() - start < GRACE + 5, "KillWait was not waited for"
    assert len(standbys.source.observe().jobs) == 2
    (gone,) = (job for job in client.jobs(ids) if job.is_over)
    assert client.jobs([prod])[0].nodes == gone.nodes


def test_launched_from_inside_a_job(
    cluster: Cluster,
    client: CommandClient,
    make: Callable[..., Standbys],
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
) -> None:
    """The coordinator's own job variables would make sbatch refuse the job or shrink it."""
    for name, value in {
        "SLURM_JOB_ID": "1",
        "SLURM_MEM_PER_CPU": "100",
        "SLURM_MEM_PER_NODE": "2048",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_NTASKS_PER_NODE": "7",
        "SLURM_TRES_PER_TASK": "cpu:9",
        "CUDA_VISIBLE_DEVICES": "7",
    }.items():
        monkeypatch.setenv(name, value)
    standbys = make(cpus_per_task=2, gpus_per_task=1, mem="1G")
    (job,) = standbys.source.launch(1)
    note = eventually(lambda: standbys.note(job), "the standby runs")
    assert "SLURM_CPUS_PER_TASK=2" in note
    assert "CUDA_VISIBLE_DEVICES=0" in note


def test_partitions_best_first(
    client: CommandClient, make: Callable[..., Standbys], eventually: Callable[..., Any]
) -> None:
    scontrol("create", "PartitionName=spare", "Nodes=n[2-3]", "PriorityTier=1")
    scontrol("update", "PartitionName=scavenger", "Nodes=n[1-2]")
    try:
        standbys = make(partitions=("scavenger", "spare"), cpus_per_task=2)
        capacity = standbys.source.observe()
        assert capacity.room == (Headroom(0, "scavenger", 2), Headroom(0, "spare", 1)), "n2 is in both and counts once"
        ids = [*standbys.source.launch(2, 0, "scavenger"), *standbys.source.launch(1, 0, "spare")]
        eventually(lambda: all(standbys.note(job) for job in ids), "three standbys run")
        assert [job.partition for job in standbys.source.observe().jobs] == ["scavenger", "scavenger", "spare"]
        standbys.source.close()
        eventually(lambda: standbys.source.observe().jobs == (), "all are gone")
    finally:
        scontrol("update", "PartitionName=scavenger", "Nodes=n[1-3]")
        scontrol("delete", "PartitionName=spare")


def test_warning_signal_and_no_requeue_are_in_the_script(make: Callable[..., Standbys], client: CommandClient) -> None:
    standbys = make(signal="USR1@45", exclude="n3", time="1:00:00")
    (job,) = standbys.source.launch(1)
    script = (standbys.dir.standby / f"{job}_submission.sh").read_text()
    for line in ("--signal=USR1@45", "--no-requeue", "--exclude=n3", "--time=1:00:00"):
        assert f"#SBATCH {line}\n" in script
    assert "#SBATCH --no-kill" not in script, "with it, workers on a node that is set DOWN are killed without a word"
    assert client.jobs([job])[0].time_limit == 3600


def test_refusal_is_one_clear_line(make: Callable[..., Standbys]) -> None:
    standbys = make(partitions=("nosuch",))
    with pytest.raises(ClusterError, match=r"^a standby job was refused: .*partition") as caught:
        standbys.source.launch(1)
    assert "\n" not in str(caught.value)


def test_a_blind_source_says_so_and_keeps_what_it_knew(
    make: Callable[..., Standbys],
    client: CommandClient,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    standbys = make()
    standbys.source.launch(1)
    known: CapacitySnapshot = eventually(lambda: _running(standbys.source.observe()), "the standby runs")

    def refuse(*_: object, **__: object) -> None:
        raise ClusterError("squeue did not answer within 30 s")

    monkeypatch.setattr(client, "jobs", refuse)
    blind = standbys.source.observe()
    monkeypatch.undo()
    assert blind.blind == "squeue did not answer within 30 s"
    assert (blind.jobs, blind.room, blind.time) == (known.jobs, known.room, known.time)


def room(capacity: CapacitySnapshot) -> list[int]:
    """Standby jobs that would start at once, in each partition."""
    return [place.jobs for place in capacity.room]


def _running(capacity: CapacitySnapshot) -> CapacitySnapshot | None:
    return capacity if [job.state for job in capacity.jobs] == ["running"] else None
