"""Training goes on across the guaranteed job's time limit, on a real cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paced_samples
import pytest
from notice_lab import job as notice_job
from notice_lab import losses_without_resize, slurm

from liver_slurm import Job, find, submit
from liver_slurm.config.schema import JobConfig, LiveSection
from liver_slurm.scheduler.slurm.client import CommandClient

pytestmark = [
    pytest.mark.slurm,
    # Two runs at once; each has a coordinator and a worker, and for a while those of its successor.
    pytest.mark.cluster(nodes=8, cpus_per_node=1, gpus_per_node=0, grace=5),
]

Eventually = Callable[..., Any]
PATIENCE = 90.0


class Chain:
    """A run whose jobs have a short time limit."""

    def __init__(
        self, folder: Path, limit: str, steps: int, lead: float | None = None, partition: str = "live"
    ) -> None:
        config = notice_job(folder / "runs", standby={"max_jobs": 0}, train={"steps": steps})
        live = LiveSection(partition=partition, time=limit, successor_lead=lead, component=config.live.component)
        self.config: JobConfig = replace(config, live=live)
        self.folder, self.steps = folder, steps
        Path(config.job.run_root).mkdir(parents=True)
        self.slow = Path(config.job.run_root) / paced_samples.SLOW
        self.slow.touch()
        self.job = submit(self.config)
        self.first = self.job.job_id

    def events(self, name: str) -> list[dict[str, Any]]:
        return [dict(event) for event in self.job.events() if event["event"] == name]

    def alive(self) -> bool:
        ended = self.events("run_ended")
        if ended and ended[0]["exit_code"] != 0:
            pytest.fail(f"the run has ended: {ended[0]['reason']}")
        return True

    def losses(self) -> list[float]:
        """Of all steps; each is there once."""
        lines = list(self.job.metrics())
        assert [line.step for line in lines] == list(range(1, self.steps + 1))
        return [line.loss for line in lines]

    def show(self) -> None:
        for event in self.job.events():
            print(event)
        for log in sorted(self.job.run_dir.logs.glob("*")):
            print(f"---- {log.name}", *log.read_text(errors="replace").splitlines()[-30:], sep="\n")


@pytest.fixture(autouse=True)
def surroundings(
    tmp_path: Path, client: CommandClient, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Runs of tests are not listed among the user's; nothing is left in the queue."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(paced_samples.FOLDER))
    yield
    client.cancel([job.leader for job in client.jobs() if not job.is_over])
    eventually(lambda: all(job.is_over for job in client.jobs()), "an empty queue", 60)


@pytest.mark.long
def test_a_successor_takes_the_run_over_or_resumes_it(
    tmp_path: Path, client: CommandClient, eventually: Eventually
) -> None:
    """Two runs beside each other, because Slurm's shortest limit is a minute: only one's successor starts."""
    # Time enough for the one to start on a busy machine: half a minute after its beginning its successor is wanted.
    moves = Chain(tmp_path / "moves", "3:00", 300, lead=150)
    waits = Chain(tmp_path / "waits", "1:00", 300, partition="prod")
    try:
        eventually(lambda: waits.events("world_live"), "the run trains", PATIENCE)
        slurm("scontrol", "update", "PartitionName=prod", "State=DOWN")  # takes jobs, and starts none
        _moved(moves, client, eventually)
        _resumed(waits, client, eventually)
    except BaseException:
        moves.show()
        waits.show()
        raise


def _moved(run: Chain, client: CommandClient, eventually: Eventually) -> None:
    eventually(lambda: run.alive() and run.events("handed_over"), "handed over", PATIENCE)
    successor = run.events("successor_submitted")[0]["job_id"]
    eventually(lambda: run.events("recovered"), "the successor's coordinator", PATIENCE)
    eventually(lambda: all(job.is_over for job in client.jobs([run.first])), "the first job is over", PATIENCE)
    assert {job.state for job in client.jobs([run.first])} == {"COMPLETED"}
    assert [event["cause"] for event in run.events("reconfiguration_committed")] == ["successor"]
    assert run.events("world_live")[1]["members"] == [f"live-{successor}-0"]
    assert find(run.first).run_dir == find(successor).run_dir == run.job.run_dir
    status = find(run.first).status()
    assert (status["state"], status["job_id"]) == ("training", successor)
    run.slow.unlink()
    assert run.job.wait(timeout=PATIENCE)["state"] == "finished"
    assert not run.events("begun_anew")
    assert run.losses() == pytest.approx(_undisturbed(run), rel=1e-6)


def _resumed(run: Chain, client: CommandClient, eventually: Eventually) -> None:
    eventually(lambda: run.alive() and run.events("interrupted"), "a checkpoint before the limit", PATIENCE)
    eventually(lambda: all(job.is_over for job in client.jobs([run.first])), "the first job is over", PATIENCE)
    assert {job.state for job in client.jobs([run.first])} == {"COMPLETED"}
    assert Job(run.job.run_dir).status()["state"] == "pending"
    written = run.events("checkpoint_written")[-1]["step"]
    run.slow.unlink()
    slurm("scontrol", "update", "PartitionName=prod", "State=UP")
    assert run.job.wait(timeout=PATIENCE)["state"] == "finished"
    again = run.events("begun_anew")
    assert [event["step"] for event in again] == [written]
    assert [world["step"] for world in run.events("world_live")] == [0, written]
    assert run.losses() == pytest.approx(_undisturbed(run), rel=1e-6)


def _undisturbed(run: Chain) -> list[float]:
    return losses_without_resize(run.config)


@pytest.mark.long
@pytest.mark.timeout(900)  # ten minutes of training, the undisturbed run, and the steps that are left
def test_ten_minutes_across_time_limits_of_three(tmp_path: Path, client: CommandClient, eventually: Eventually) -> None:
    run = Chain(tmp_path, "3:00", 2000)
    began = time.time()
    try:
        eventually(lambda: run.alive() and time.time() >= began + 600, "ten minutes of training", 630)
        run.slow.unlink()
        assert run.job.wait(timeout=240)["state"] == "finished"
        jobs = {run.first, *(event["job_id"] for event in run.events("successor_submitted"))}
        handed = run.events("handed_over")
        assert len(handed) >= 3
        assert not run.events("begun_anew")
        assert not run.events("interrupted")
        assert len(list(Path(run.config.job.run_root).glob("*/run.json"))) == 1
        assert run.losses() == pytest.approx(_undisturbed(run), rel=1e-6)
        pauses = [event["pause_s"] for event in run.events("reconfiguration_committed")]
        print(f"{len(jobs)} jobs, {len(handed)} handovers, pauses {pauses}")
    except BaseException:
        run.show()
        raise
