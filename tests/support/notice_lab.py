"""One elastic run on a real cluster, notices of every kind, and how long each took to free the node."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import paced_samples
import pytest
import worker_lab

from liver_slurm import Job, submit
from liver_slurm.app.local_run import run_local
from liver_slurm.config.schema import DataSection, JobConfig, LiveSection, StandbySection
from liver_slurm.rundir.metrics import read_metrics
from liver_slurm.rundir.registry import create_run
from liver_slurm.scheduler.slurm.client import CommandClient

STEPS = 400
ACTING, WAITING = 0.25, 1.5
"""Seconds of a step while a notice is acted upon, and while a standby starts, which takes long and needs no steps; of
later steps a tenth of the time that it has taken, so that a run on a slow machine does not end before its test."""
SHOWN = ("time", "event", "worker", "kind", "reason", "deadline", "from", "to", "step", "in_world")
PATIENCE = 300.0
"""Seconds for a standby to start, or a world to change, on a machine that others use too."""
Eventually = Callable[..., Any]


def slurm(*command: str) -> str:
    """Run one of Slurm's commands."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def partition(**settings: Any) -> None:
    """Change the scavenger partition, e.g. ``PreemptMode="REQUEUE", GraceTime=0``."""
    slurm("scontrol", "update", "PartitionName=scavenger", *(f"{key}={value}" for key, value in settings.items()))


@dataclass
class Row:
    """A line of the table."""

    notice: str
    mode: str = ""
    grace: str = ""
    seconds_to_free: float | None = None
    seconds_after_cutover: float | None = None
    heard: str = ""
    """Kinds of the notices that the coordinator went by."""
    completed: bool = False


@dataclass
class NoticeRun:
    """A run of one live and some standby workers; each notice's line is added to ``rows``."""

    job: Job
    config: JobConfig
    client: CommandClient
    eventually: Eventually
    folder: Path
    rows: list[Row] = field(default_factory=list)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events of one name so far."""
        return [dict(event) for event in self.job.events() if event["event"] == name]

    def worlds(self) -> list[dict[str, Any]]:
        """Live worlds so far."""
        return self.events("world_live")

    def grown(self, size: int = 2) -> list[str]:
        """Wait until the live world has ``size`` workers; the standby jobs in it."""

        def there() -> list[str]:
            members = self.worlds()[-1]["members"] if self.worlds() else []
            return members if len(members) == size else []

        def enough() -> bool:
            self.alive()
            ready = {event["worker"] for event in self.events("standby_ready")}
            gone = {event["worker"] for name in ("worker_left", "worker_lost") for event in self.events(name)}
            return 1 + len(ready - gone) >= size

        self.pace(WAITING)
        self.eventually(enough, f"{size} workers", PATIENCE)
        self.pace(ACTING)
        members = self.eventually(there, f"a world of {size}", PATIENCE)
        return [member.split("-")[1] for member in members if member.startswith("standby")]

    def left(self, standby: str) -> dict[str, Any]:
        """Wait until the live world has no worker of the standby job; the event of that world."""

        def gone() -> dict[str, Any]:
            self.alive()
            world = self.worlds()[-1]
            return {} if any(f"standby-{standby}-" in member for member in world["members"]) else world

        world: dict[str, Any] = self.eventually(gone, f"a world without standby job {standby}", PATIENCE)
        return world

    def pace(self, seconds: float) -> None:
        """How long a step takes from now on."""
        paced_samples.pace(self.config.job.run_root, seconds, share=0.1)

    @property
    def _slow(self) -> Path:
        return Path(self.config.job.run_root) / paced_samples.SLOW

    def joining(self) -> str:
        """The standby job of a worker that a target world is being prepared for; empty: of none."""
        over = self.events("reconfiguration_committed") + self.events("reconfiguration_aborted")
        started = self.events("reconfiguration_started")
        under_way = len(started) > len(over) and bool(started[-1]["joiners"])
        return started[-1]["joiners"][0].split("-")[1] if under_way else ""

    def alive(self) -> None:
        """Fail at once, with its reason, if the run is over."""
        for ended in self.events("run_ended"):
            pytest.fail(f"the run has ended: {ended['reason']}")

    def node(self, standby: str) -> str:
        """The node of a standby job."""
        return self.client.jobs(ids=[standby])[0].nodes[0]

    def update_node(self, node: str, state: str) -> None:
        """``scontrol update NodeName=… State=…``."""
        slurm("scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=test")

    def announced(self, standby: str, kind: str) -> bool:
        """Whether Slurm's record has told the coordinator of a notice of this kind."""
        jobs = self.job.status()["standby_jobs"]
        return any(job["job_id"] == standby and job["notice"] == kind for job in jobs)

    def preempt(self, row: Row, standby: str, *options: str) -> None:
        """A notice by a job that wants one node, which has ended when this returns."""
        wanted: list[str] = []
        self.notice(row, standby, lambda: wanted.append(self.prod(1, *options)))
        self.free(wanted[0])

    def prod(self, nodes: int = 1, *options: str) -> str:
        """A job that may preempt standbys and wants nodes; it holds them until :meth:`free`."""
        always = [f"-N{nodes}", "--exclusive", "-o", "/dev/null", "--chdir", str(self.folder), "--wrap", "sleep 1000"]
        return slurm("sbatch", "--parsable", *(options or ("-pprod",)), *always)

    def free(self, job: str) -> None:
        """End such a job."""
        slurm("scancel", job)

    def notice(self, row: Row, standby: str, cause: Callable[[], object], node_frees: bool = True) -> None:
        """Cause a notice, wait until the world goes on without the standby job, and until its node is free."""
        self.pace(ACTING)
        began = time.time()
        cause()
        if node_frees:
            ended = self.eventually(lambda: self._is_over(standby), f"standby job {standby} is over", PATIENCE)
        world = self.left(standby)
        if node_frees:
            row.seconds_to_free = ended - began
            if world["time"] > began:  # else it was in no world
                row.seconds_after_cutover = ended - self._cutover(world["generation"])
        heard = [event for event in self.job.events() if event["event"] in ("notice", "notice_changed")]
        row.heard = " → ".join(event["kind"] for event in heard if f"standby-{standby}-" in event["worker"])
        self.rows.append(row)

    def _is_over(self, standby: str) -> float:
        self.alive()
        jobs = self.client.jobs(ids=[standby])
        return time.time() if not jobs or jobs[0].is_over else 0.0

    def _cutover(self, generation: int) -> float:
        """When the commit record was written: the coordinator's vote count is complete with this event."""
        return next(
            event["time"] for event in self.events("reconfiguration_streamed") if event["generation"] == generation
        )

    def table(self) -> list[dict[str, Any]]:
        """The lines for people; a run that is complete has trained every step once."""
        return [
            {
                "notice": row.notice,
                "preempt mode": row.mode,
                "grace": row.grace,
                "heard of as": row.heard,
                "from notice": row.seconds_to_free,
                "from cutover": row.seconds_after_cutover,
                "steps lost": 0 if row.completed else None,
                "completed": "yes" if row.completed else "no",
            }
            for row in self.rows
        ]

    def close(self) -> None:
        """End all jobs; printed if the test fails: what happened."""
        for event in self.job.events():
            print({key: value for key, value in event.items() if key in SHOWN})
        self.job.cancel()
        slurm("scancel", "-u", slurm("id", "-un"))
        self.eventually(lambda: all(each.is_over for each in self.client.jobs()), "an empty queue", PATIENCE)

    def finish(self) -> None:
        """The run completes; each step is trained once, with the losses of a run that nobody disturbed."""
        self.alive()
        self._slow.unlink()
        ended = self.eventually(lambda: self.events("run_ended"), "the run is complete", worker_lab.WHOLE_RUN)
        assert ended[0]["outcome"] == "finished", ended
        lines = list(self.job.metrics())
        assert [line.step for line in lines] == list(range(1, STEPS + 1))
        expected = losses_without_resize(self.config)
        assert [line.loss for line in lines] == pytest.approx(expected, rel=1e-6)
        for row in self.rows:
            row.completed = True


def start(
    tmp_path: Path, client: CommandClient, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> NoticeRun:
    """Submit a run of one live worker, which grows by a standby for each of ``standby["max_jobs"]``.

    ``options``: a section's name → the keys that differ.
    """
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # runs of tests are not listed among the user's
    monkeypatch.setenv("PYTHONPATH", str(paced_samples.FOLDER))
    wanted = job(tmp_path / "runs", **options)
    Path(wanted.job.run_root).mkdir()
    run = NoticeRun(submit(wanted), wanted, client, eventually, tmp_path)
    run.pace(WAITING)
    return run


def job(folder: Path, **options: dict[str, Any]) -> JobConfig:
    """A tiny model whose steps take a third of a second until the test lets them go."""
    config = worker_lab.job(folder, steps=STEPS, live=1)
    config = replace(
        config,
        data=DataSection(provider="paced_samples:provide"),
        train=replace(config.train, global_batch_size=4, adam_eps=1e-5),
        live=LiveSection(partition="live", time="1:00:00"),
        standby=StandbySection(
            partitions=("scavenger",), max_jobs=1, time="1:00:00", poll=1.0, queries_per_minute=600, back_off=0.1
        ),
    )
    changed = {name: replace(getattr(config, name), **changes) for name, changes in options.items()}
    return replace(config, **changed)


def losses_without_resize(config: JobConfig) -> list[float]:
    """The losses of the same job on one worker, as a plain process."""
    plain = replace(config, standby=replace(config.standby, max_jobs=0))
    run_dir = create_run(plain)
    assert run_local(plain, run_dir, 1, 0) == 0
    return [line.loss for line in read_metrics(run_dir.metrics)]
