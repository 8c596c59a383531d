"""An elastic run beside a production load on a real slurmctld with many nodes, and what is measured of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scale_log import Log, Wait, wait_of
from scale_measured import Measured
from scale_plain import PlainJobs
from scale_production import Production, ProductionJob, delays, draw
from scale_slurmctld import QueryCount, Slurmctld, command, cycles, in_a_minute

from liver_slurm.config.load import load_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run
from liver_slurm.scheduler.slurm.standby import standby_job_name

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
PATIENCE = 60.0
"""Seconds that a process of the run has to end when it is asked to."""


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
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start both."""
        self._processes.append(self._program("scale_workers.py", "--guaranteed", str(GUARANTEED)))
        self._processes.append(self._program("scale_coordinator.py"))

    def _program(self, script: str, *options: str) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_JOB")}
        path = (*map(str, PATH), os.environ.get("PYTHONPATH"))
        with (self.run_dir.logs / f"{script}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, str(SUPPORT / script), str(self.run_dir.path), *options],
                stdout=log, stderr=log, env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            )  # fmt: skip

    def check(self) -> None:
        """Fail if one of the processes has ended."""
        for process in self._processes:
            if process.poll() is not None:
                logs = sorted(self.run_dir.logs.glob("*.log"))
                said = "\n".join(f"{log.name}: {line}" for log in logs for line in log.read_text().splitlines()[-20:])
                raise AssertionError(f"{process.args} has ended with {process.returncode}\n{said}")

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
        """End the coordinator, which takes its standby jobs back, the workers, and what jobs there still are.

        Raises:
            subprocess.TimeoutExpired: one of the processes had to be killed.
        """
        with ExitStack() as ending:  # the last first, and each whatever becomes of the others
            ending.callback(command, "scancel", f"--name={standby_job_name(self.run_dir)}")
            for process in self._processes:
                ending.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    finally:
        process.kill()  # nothing, where it has ended
        process.wait()


class Nobody:
    """No company."""

    def start(self) -> None:
        pass

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


Company = ElasticRun | PlainJobs | Nobody


def company_of(kind: str, root: Path, nodes: int, nodes_per_job: int) -> Company:
    """What is to be beside production, one of ``COMPANY``; it has not begun."""
    if kind == "run":
        return ElasticRun(root, nodes, nodes_per_job)
    return PlainJobs(nodes, nodes_per_job) if kind == "plain" else Nobody()


@dataclass(frozen=True)
class Spans:
    """What is looked at, each from when to when, seconds since the epoch."""

    alone: tuple[float, float]
    """Production alone, when its first jobs have started, which came all at once."""
    beside: tuple[float, float]
    """Production and its company, when that has grown."""
    last: float
    """The last look at starts."""


def measure(
    root: Path,
    nodes: int,
    seconds: float,
    nodes_per_job: int = 4,
    alone: float = 90.0,
    ramp: float = 60.0,
    company: str = "run",
) -> Measured:
    """Play a load alone, then with ``company`` beside it, on the cluster that SLURM_CONF names.

    Raises:
        ValueError: no production job came while production was alone, or beside its company: there is nothing to
            compare.
    """
    slurmctld = Slurmctld(root)
    production = Production(root / "production", draw(nodes, alone + ramp + seconds, seed=7), nodes)
    beside = company_of(company, root, nodes, nodes_per_job)
    with ExitStack() as ending:  # the last first, and each whatever becomes of the others
        ending.callback(slurmctld.keep_log)
        begun, ended = play(alone, production)
        settled = (begun + alone / 4, ended)
        if not production.due(*settled):
            raise ValueError(f"no job of production came in the {0.75 * alone:.0f} s before its company; give more")
        slurmctld.begin()
        queries = QueryCount()
        ending.callback(queries.close)
        ending.callback(beside.close)
        beside.start()
        play(ramp, production, beside, queries)
        counted = play(seconds, production, beside, queries)
        looks = cycles(slurmctld.note("sdiag-after.txt"))
        _, last = play(15.0, production, beside, queries)  # those that were due last have started, too
    if not production.due(*counted):
        raise ValueError(f"no job of production came in the {seconds:.0f} s beside its company; give more")
    spans = Spans(settled, counted, last)
    seen = beside.seen(*counted, production) if isinstance(beside, ElasticRun) else {}
    seen["queries_per_minute"] = queries.per_minute(*counted)
    seen["queries_in_a_minute"] = in_a_minute(queries.counted)
    return evaluate(slurmctld.read_log(), production, spans, nodes=nodes, company=company, looks=looks, **seen)


def play(seconds: float, production: Production, *others: Company | QueryCount) -> tuple[float, float]:
    """Let production and others go on for a time: from when to when that was."""
    begun = time.time()
    while time.time() < begun + seconds:
        production.turn()
        for one in others:
            one.check()
        time.sleep(0.05)  # the pace of the looks
    return begun, time.time()


def evaluate(log: Log, production: Production, spans: Spans, **rest: Any) -> Measured:
    """Say what came of it; ``rest``: what else is in :class:`Measured`."""
    since, until = spans.beside
    jobs = production.due(since, until)
    return Measured(
        seconds=until - since, starts=len(jobs), unseen=sum(job.started(spans.last) is None for job in jobs),
        alone=delays(production.due(*spans.alone), spans.last), delays=delays(jobs, spans.last),
        waits=waits_of(log, jobs, production, spans.last),
        updates=tuple(took for moment, took in log.updates if since <= moment < until), **rest,
    )  # fmt: skip


def waits_of(log: Log, jobs: list[ProductionJob], production: Production, last: float) -> tuple[Wait, ...]:
    """What each start that was seen by ``last`` has waited for, the slowest first."""
    ours = frozenset(job.job_id for job in production.jobs)
    waits = []
    for job in jobs:
        if (began := job.started(last)) is not None:
            logged = log.job(job.job_id)
            wait = wait_of(log, logged, ours)
            assert logged.started is not None
            waits.append(replace(wait, submit=logged.submitted - job.due, launch=began - logged.started))
    return tuple(sorted(waits, key=lambda one: -one.total))
