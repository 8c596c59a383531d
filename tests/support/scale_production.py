"""A production load: jobs of a higher tier that arrive at random, and what they waited for their starts."""

from __future__ import annotations

import math
import random
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

SCRIPT = Path(__file__).with_name("scale_production.sh")
SIZES, WEIGHTS = (1, 2, 4, 8, 16, 32, 64), (10, 10, 20, 20, 20, 15, 5)
"""Nodes of production jobs, and how frequent they are: most are small, most node-hours are in large ones."""
BUSY, MOST = 0.75, 0.9
"""Share of the nodes that production has in the mean, and at most."""
AGAIN = 2.0
"""Seconds by which the load is put off where production would have to wait for itself."""


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


@dataclass(frozen=True)
class ProductionJob:
    """A production job that was submitted."""

    job_id: str
    nodes: int
    due: float
    """When it was to be submitted. Its wait counts from here: what sbatch takes, and those before it, is part of it."""
    folder: Path

    def stamp(self, what: str) -> float | None:
        """When it started or ended, by its own clock; None: it has not."""
        try:
            text = (self.folder / f"{self.job_id}.{what}").read_text()
        except FileNotFoundError:
            return None
        return float(text) if text.endswith("\n") else None

    def started(self, last: float) -> float | None:
        """When its script's first line ran; None: not by ``last``."""
        start = self.stamp("start")
        return None if start is None or start > last else start


class Production:
    """Plays a load."""

    def __init__(self, folder: Path, arrivals: list[Arrival], nodes: int) -> None:
        self._folder, self._waiting, self._nodes = folder, list(arrivals), nodes
        folder.mkdir()
        self.jobs: list[ProductionJob] = []
        self._begun = time.time()
        self._open: list[ProductionJob] = []

    def turn(self) -> None:
        """Submit what is due; production never waits for production, so that all it waits for is the run."""
        self._open = [job for job in self._open if job.stamp("end") is None]
        used = sum(job.nodes for job in self._open)
        while self._waiting and self._waiting[0].at <= (now := time.time() - self._begun):
            if used + self._waiting[0].nodes > MOST * self._nodes:
                later = now + AGAIN - self._waiting[0].at
                self._waiting = [replace(one, at=one.at + later) for one in self._waiting]
                return
            used += self._submit(self._waiting.pop(0))

    def _submit(self, one: Arrival) -> int:
        script = ["--output=/dev/null", str(SCRIPT), str(self._folder), f"{one.seconds:.1f}"]
        done = subprocess.run(
            ["sbatch", "--parsable", "-pprod", f"-N{one.nodes}", "--exclusive", "--time=60", *script],
            check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.jobs.append(ProductionJob(done.stdout.strip(), one.nodes, self._begun + one.at, self._folder))
        self._open.append(self.jobs[-1])
        return one.nodes

    def due(self, since: float, until: float) -> list[ProductionJob]:
        """The jobs that were due in between."""
        return [job for job in self.jobs if since <= job.due < until]

    def busy(self, moments: list[float]) -> list[int]:
        """Nodes that production has at each moment."""
        spans = [(job.nodes, job.stamp("start") or math.inf, job.stamp("end") or math.inf) for job in self.jobs]
        return [sum(nodes for nodes, start, end in spans if start <= now < end) for now in moments]


def delays(jobs: list[ProductionJob], last: float) -> list[float]:
    """From the moment that each job was due to its script's first line, sorted; if that was not seen, to ``last``."""
    starts = [(job.due, job.started(last)) for job in jobs]
    return sorted((last if start is None else start) - due for due, start in starts)
