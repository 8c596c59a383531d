"""An elastic run beside a production load on a real slurmctld with many nodes, and what is measured of both."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scale_log import Wait, wait_of
from scale_plain import PlainJobs
from scale_slurmctld import Slurmctld, cycles, in_a_minute, queries

from liver_slurm.config.load import load_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run

SUPPORT = Path(__file__).parent
PATH = (SUPPORT, SUPPORT.parents[1])
"""Where the programs of the run find each other and the package, also where it is not installed."""
JOB_FILE = SUPPORT.parents[1] / "configs" / "gpt-tiny.toml"
SITE: dict[str, Any] = {"scheduler": ("bf_interval=30",), "extra": ("Epilog=/bin/true",)}
"""What a site has that a development cluster has not: backfill each 30 s, which is Slurm's default, and an epilog.

Without an epilog slurmctld hears that a node is free in an answer, and looks at its queue in its next round, up to a
second later; with one it is told, and looks at once. What backfill does each second says docs/benchmarks.md.
"""
GUARANTEED = 2
SIZES, WEIGHTS = (1, 2, 4, 8, 16, 32, 64), (10, 10, 20, 20, 20, 15, 5)
"""Nodes of production jobs, and how frequent they are: most are small, most node-hours are in large ones."""
MOST_ADDED = 2.0
"""Seconds by which the run may delay a production start, in the 99th percentile."""
BUSY, MOST = 0.75, 0.9
"""Share of the nodes that production has in the mean, and at most."""


@dataclass(frozen=True)
class Arrival:
    """A production job to come."""

    at: float
    """Seconds since the load began."""
    nodes: int
    seconds: float


def draw(nodes: int, seconds: float, seed: int, mean: float = 240.0) -> list[Arrival]:
    """Draw a load: jobs that are there at the beginning, then arrivals at random with lengths of ``mean`` seconds."""
    lot = random.Random(seed)

    def length() -> float:
        return min(4 * mean, max(mean / 8, lot.lognormvariate(math.log(mean) - 0.32, 0.8)))

    def size() -> int:
        return min(lot.choices(SIZES, WEIGHTS)[0], max(1, nodes // 8))

    arrivals, used = [], 0
    while used < BUSY * nodes:
        arrivals.append(Arrival(0.0, size(), lot.uniform(0.1, 1.0) * length()))
        used += arrivals[-1].nodes
    weighed = [min(one, max(1, nodes // 8)) * weight for one, weight in zip(SIZES, WEIGHTS, strict=True)]
    mean_size = sum(weighed) / sum(WEIGHTS)
    now = 0.0
    while (now := now + lot.expovariate(BUSY * nodes / mean_size / mean)) < seconds:
        arrivals.append(Arrival(now, size(), length()))
    return arrivals


@dataclass
class Started:
    """A production job that was submitted."""

    job_id: str
    nodes: int
    submitted: float
    folder: Path

    def stamp(self, what: str) -> float | None:
        """When it started or ended, by its own clock; None: it has not."""
        try:
            text = (self.folder / f"{self.job_id}.{what}").read_text()
        except FileNotFoundError:
            return None
        return float(text) if text.endswith("\n") else None


class Production:
    """Plays a load."""

    def __init__(self, folder: Path, arrivals: list[Arrival], nodes: int) -> None:
        self._folder, self._waiting, self._nodes = folder, list(arrivals), nodes
        folder.mkdir()
        self.jobs: list[Started] = []
        self._begun = time.time()
        self._open: list[Started] = []

    def turn(self) -> None:
        """Submit what is due; production never waits for production, so that all it waits for is the run."""
        self._open = [job for job in self._open if job.stamp("end") is None]
        used = sum(job.nodes for job in self._open)
        while self._waiting and self._waiting[0].at <= time.time() - self._begun:
            if used + self._waiting[0].nodes > MOST * self._nodes:
                self._waiting = [replace(one, at=one.at + 2.0) for one in self._waiting]
                return
            used += self._submit(self._waiting.pop(0))

    def _submit(self, one: Arrival) -> int:
        script = ["--output=/dev/null", str(SUPPORT / "scale_production.sh"), str(self._folder), f"{one.seconds:.1f}"]
        begun = time.time()
        done = subprocess.run(
            ["sbatch", "--parsable", "-pprod", f"-N{one.nodes}", "--exclusive", "--time=60", *script],
            check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.jobs.append(Started(done.stdout.strip(), one.nodes, begun, self._folder))
        self._open.append(self.jobs[-1])
        return one.nodes

    def starts(self, since: float, until: float) -> list[tuple[float, float]]:
        """When each job was submitted that was so in between, and when its script's first line ran."""
        return [(job.submitted, job.stamp("start") or until) for job in self.jobs if since <= job.submitted < until]

    def delays(self, since: float, until: float) -> list[float]:
        """From sbatch to the first line of the script, of the jobs that were submitted in between, sorted."""
        return sorted(started - submitted for submitted, started in self.starts(since, until))

    def busy(self, moments: list[float]) -> list[int]:
        """Nodes that production has at each moment."""
        spans = [(job.nodes, job.stamp("start") or math.inf, job.stamp("end") or math.inf) for job in self.jobs]
        return [sum(nodes for nodes, start, end in spans if start <= now < end) for now in moments]


def configure(root: Path, nodes: int, nodes_per_job: int) -> JobConfig:
    """The run's job: any number of replicas, as many as there are nodes."""
    layouts = [f"tp1pp1dp{number}" for number in range(1, nodes + GUARANTEED + 1)]
    changes: dict[str, Any] = {
        "job.run_root": f'"{root}"', "train.steps": 10**8, "train.global_batch_size": 2 * 65536,
        "standby.max_jobs": nodes // nodes_per_job, "standby.nodes_per_job": nodes_per_job,
        # Thin workers join within a second, so that one that stays for five is worth it.
        "standby.hold": 5, "standby.launch": '"queue"', "standby.queries_per_minute": 12, "checkpoint.every": 0,
        "checkpoint.at_end": "false",
        "elastic.layouts": json.dumps(layouts),
    }  # fmt: skip
    return load_job(JOB_FILE, [f"{key}={value}" for key, value in changes.items()])


class ElasticRun:
    """The coordinator and the process with all workers."""

    def __init__(self, root: Path, nodes: int, nodes_per_job: int) -> None:
        self._nodes = nodes
        self.run_dir: RunDir = create_run(configure(root, nodes, nodes_per_job))
        os.mkfifo(self.run_dir.path / "told")
        self._processes = [
            self._start("scale_workers.py", "--guaranteed", str(GUARANTEED)),
            self._start("scale_coordinator.py"),
        ]

    def _start(self, script: str, *options: str) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_JOB")}
        with (self.run_dir.logs / f"{script}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, str(SUPPORT / script), str(self.run_dir.path), *options],
                stdout=log, stderr=log, env={**environment, "PYTHONPATH": os.pathsep.join(map(str, PATH))},
            )  # fmt: skip

    def check(self) -> None:
        """Fail if one of the processes has ended."""
        for process in self._processes:
            assert process.poll() is None, f"{process.args} has ended; see {self.run_dir.logs}"

    def samples(self, since: float, until: float) -> list[dict[str, Any]]:
        """What was counted each second."""
        rows = [json.loads(line) for line in (self.run_dir.path / "samples.jsonl").read_text().splitlines()]
        return [row for row in rows if since <= row["time"] < until]

    def seen(self, since: float, until: float, production: Production) -> dict[str, Any]:
        """What it had of the idle nodes, and how often its world changed."""
        rows = self.samples(since, until)
        idle = [self._nodes - busy for busy in production.busy([row["time"] for row in rows])]
        told = [json.loads(line) for line in self.run_dir.events.read_text().splitlines()]
        return {
            "used": sum(row["held"] for row in rows) / sum(idle),
            "trained": sum(row["members"] for row in rows) / sum(idle),
            "idle": sum(idle) / len(idle),
            "generations": sum(since <= one["time"] < until for one in told if one["event"] == "world_live"),
        }

    def close(self) -> None:
        """End both processes, with the run's standby jobs."""
        for process in reversed(self._processes):
            process.terminate()
            process.wait(timeout=60)


@dataclass(frozen=True)
class Measured:
    """What came of it."""

    seconds: float
    nodes: int
    starts: int
    """Production jobs that were submitted in that time."""
    alone: list[float]
    """Delays of production before the run began."""
    delays: list[float]
    """Those beside it."""
    queries_per_minute: float
    """In the mean."""
    queries_in_a_minute: int
    """The most in any."""
    used: float = 0.0
    """Share of the idle node-hours that standby jobs had."""
    trained: float = 0.0
    """Share in which their workers were members of the live world."""
    idle: float = 0.0
    """Nodes that production left idle, in the mean."""
    generations: int = 0
    """Worlds in that time."""
    company: str = "run"
    """What was beside production: see :data:`COMPANY`."""
    waits: tuple[Wait, ...] = ()
    """Of all starts, the slowest first."""
    updates: tuple[float, ...] = ()
    """Seconds that each update of a job took slurmctld, with its wait for locks."""
    looks: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Seconds that slurmctld's schedulers took for a look at the queue, in the mean and at most."""

    @property
    def slow(self) -> list[Wait]:
        """What starts have waited for that are delayed by more than :data:`MOST_ADDED`, the slowest first."""
        return [one for one in self.waits if one.total - self.usual > MOST_ADDED]

    @property
    def usual(self) -> float:
        """Seconds from sbatch to a job's first line where production is alone, in the median."""
        return self.alone[len(self.alone) // 2]

    def added(self, quantile: float) -> float:
        """Seconds by which the run delays a production start: the quantile beyond what is usual."""
        return self.delays[min(len(self.delays) - 1, int(quantile * len(self.delays)))] - self.usual

    def document(self) -> dict[str, Any]:
        """Everything, for programs."""
        quantiles = {f"added_p{round(100 * one)}_s": self.added(one) for one in (0.5, 0.9, 0.99, 1.0)}
        return {**asdict(self), "usual_s": self.usual, **quantiles}

    def lines(self) -> list[str]:
        """The figures, for people."""
        most = self.delays[-1] - self.usual
        quantiles = ", ".join(f"p{round(100 * one)} {self.added(one):.2f} s" for one in (0.5, 0.9, 0.99))
        took = self.updates
        return [
            f"{self.nodes} nodes, {self.seconds:.0f} s, {COMPANY[self.company]}",
            *(self.lines_of_run() if self.company == "run" else ()),
            f"production alone: {self.usual:.2f} s from sbatch to the job's first line (median of {len(self.alone)})",
            f"the slowest of those: {self.alone[-1]:.2f} s",
            f"added to that: {quantiles}, at most {most:.2f} s, of {self.starts} starts",
            *(
                f"one of {len(self.slow)} that are delayed by more than {MOST_ADDED:g} s: {one}"
                for one in self.slow[:8]
            ),
            *(
                f"{name}: {mean:.3f} s a look at the queue, {most:.3f} at most"
                for name, (mean, most) in self.looks.items()
            ),
            f"updates of jobs: {len(took)}, {sum(took):.1f} s in all, {max(took, default=0.0):.2f} s at most",
        ]

    def lines_of_run(self) -> list[str]:
        """Those that there are only of an elastic run."""
        return [
            f"idle nodes: {self.idle:.0f} in the mean",
            f"idle node-hours used: {self.used:.1%} by standby jobs, {self.trained:.1%} as members of the live world",
            f"queries to slurmctld: {self.queries_in_a_minute} a minute at most, {self.queries_per_minute:.1f} in mean",
            f"{self.generations} worlds",
        ]


COMPANY = {
    "run": "beside an elastic run",
    "plain": "beside ordinary preemptible jobs that end at once when they are taken",
    "none": "production alone",
}


class Nobody:
    """No company."""

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


def measure(
    root: Path,
    nodes: int,
    seconds: float,
    nodes_per_job: int = 4,
    alone: float = 90.0,
    ramp: float = 60.0,
    company: str = "run",
) -> Measured:
    """Play a load alone, then with ``company`` beside it, on the cluster that SLURM_CONF names."""
    slurmctld = Slurmctld(root)
    production = Production(root / "production", draw(nodes, alone + ramp + seconds, seed=7), nodes)

    counted: list[tuple[float, int]] = []
    """Queries by a moment."""

    def play(duration: float, beside: ElasticRun | PlainJobs | Nobody, count: bool = False) -> tuple[float, float]:
        begun = time.time()
        while time.time() < begun + duration:
            production.turn()
            beside.check()
            if count and time.time() > (counted[-1][0] if counted else 0.0) + 1.0:
                counted.append((time.time(), queries()))
            time.sleep(0.05)
        return begun, time.time()

    before = play(alone, Nobody())
    settled = before[0] + alone / 4  # the first jobs came all at once
    beside: ElasticRun | PlainJobs | Nobody = Nobody()
    if company == "run":
        beside = ElasticRun(root, nodes, nodes_per_job)
    elif company == "plain":
        beside = PlainJobs(nodes, nodes_per_job)
    try:
        play(ramp, beside)
        slurmctld.begin()
        since, until = play(seconds, beside, count=True)
        looks = cycles(slurmctld.note("sdiag-after.txt"))
        play(15.0, beside)  # those that were submitted last have started, too
    finally:
        log = slurmctld.close()
        beside.close()
    alone_delays = production.delays(settled, before[1]) or production.delays(*before)
    counted_jobs = [log.job(one.job_id) for one in production.jobs if since <= one.submitted < until]
    ours = frozenset(one.job_id for one in production.jobs)
    waits = [wait_of(log, job, ours) for job in counted_jobs if job.started is not None]
    seen = beside.seen(since, until, production) if isinstance(beside, ElasticRun) else {}
    delays = production.delays(since, until)
    return Measured(
        seconds=until - since, nodes=nodes, starts=len(delays), alone=alone_delays, delays=delays,
        queries_per_minute=60 * (counted[-1][1] - counted[0][1]) / (counted[-1][0] - counted[0][0]),
        queries_in_a_minute=in_a_minute(counted), company=company,
        waits=tuple(sorted(waits, key=lambda one: -one.total)),
        looks=looks, updates=tuple(took for moment, took in log.updates if since <= moment < until), **seen,
    )  # fmt: skip
