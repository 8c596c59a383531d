"""What slurmctld's log says of each start of a production job: what it took back, and what came in between."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

LINE = re.compile(r"^\[(\d{4}-\d\d-\d\dT[\d:.]+)\]\s+(.*)")
SUBMITTED = re.compile(r"_slurm_rpc_submit_batch_job: JobId=(\d+)")
TAKEN = re.compile(r"preemption grace time for JobId=(\d+) to reclaim resources for JobId=(\d+)")
ENDED = re.compile(r"_job_complete: JobId=(\d+) (?:done|WEXITSTATUS|WTERMSIG|WIFSIGNALED|OOM)")
FREED = re.compile(r"cleanup_completing: JobId=(\d+)")
STARTED = re.compile(r"(?:sched: Allocate|Started) JobId=(\d+) .*?(?:NodeList=|\bon )(\S+)")
ORDERED = re.compile(r"_slurm_rpc_update_job: complete JobId=\S+ .*usec=(\d+)")
"""An update of a job; how long it took, with the wait for locks, microseconds."""


def hostnames(expression: str) -> Iterator[str]:
    """Expand ``n[1-3,7]``, or names with a comma between."""
    for prefix, numbers, plain in re.findall(r"([^,\[]+)\[([^\]]*)\]|([^,\[\]]+)", expression):
        if plain:
            yield plain
        for part in filter(None, numbers.split(",")):
            first, _, last = part.partition("-")
            yield from (f"{prefix}{number}" for number in range(int(first), int(last or first) + 1))


@dataclass
class Job:
    """One job, times in seconds since the epoch."""

    job_id: str
    submitted: float = 0.0
    started: float | None = None
    nodes: frozenset[str] = frozenset()
    ended: float | None = None
    freed: float | None = None
    """When all its nodes had said that nothing of it is left."""
    taken: dict[str, float] = field(default_factory=dict)
    """Jobs whose nodes Slurm wants for it, and since when."""


@dataclass
class Log:
    """All jobs of a log by id, and what the updates took, seconds."""

    jobs: dict[str, Job] = field(default_factory=dict)
    updates: list[tuple[float, float]] = field(default_factory=list)
    """When each update of a job was done, and how long it took."""

    def job(self, job_id: str) -> Job:
        return self.jobs.setdefault(job_id, Job(job_id))


def read(lines: Iterable[str]) -> Log:
    """Read slurmctld's log at level ``debug``, which says who is taken for whom, with ``TraceJobs``."""
    log = Log()
    for line in lines:
        if (stamped := LINE.match(line)) is None:
            continue
        text = stamped[2]
        now = datetime.fromisoformat(stamped[1]).timestamp()
        if found := SUBMITTED.search(text):
            log.job(found[1]).submitted = now
        elif found := TAKEN.search(text):
            log.job(found[2]).taken.setdefault(found[1], now)
        elif found := ENDED.search(text):
            job = log.job(found[1])
            job.ended = now if job.ended is None else job.ended
        elif found := FREED.search(text):
            job = log.job(found[1])
            job.freed = now if job.freed is None else job.freed
        elif found := STARTED.search(text):
            job = log.job(found[1])
            job.started, job.nodes = now, frozenset(hostnames(found[2]))
        elif found := ORDERED.search(text):
            log.updates.append((now, int(found[1]) / 1e6))
    return log


@dataclass(frozen=True)
class Wait:
    """What one production start has waited for, seconds: ``submit`` to ``launch``, in this order."""

    job_id: str
    nodes: int
    slurm: float
    """From its submission until Slurm took the first job for it. All of it where none was taken."""
    run: float = 0.0
    """From there until the last of those that were taken in the first turn had ended: what giving back takes."""
    free: float = 0.0
    """From there until Slurm had all their nodes."""
    start: float = 0.0
    """From there until Slurm started it."""
    launch: float = 0.0
    """From there until its script's first line ran."""
    submit: float = 0.0
    """Before all that: from the moment at which it was due until slurmctld had it."""
    turns: int = 0
    """How often Slurm took jobs for it, a second and more apart."""
    others: int = 0
    """Of the nodes that were vacated for it, those that other jobs of production were given before it started."""
    ours: int = 0
    """Those that preemptible jobs were given."""
    ahead: int = 0
    """Jobs of production that were submitted before it and started while it waited."""
    updates: int = 0
    """Updates of jobs that slurmctld carried out meanwhile."""

    @property
    def total(self) -> float:
        """From the moment at which it was due to its script's first line."""
        return self.submit + self.slurm + self.run + self.free + self.start + self.launch

    def __str__(self) -> str:
        where = f"JobId={self.job_id}, {self.nodes} nodes: {self.total:.2f} s"
        where += f", {self.submit:.2f} s until slurmctld had it, {self.slurm:.2f} s until Slurm"
        begun = f"{self.launch:.2f} s until it began"
        if not self.turns:
            return f"{where} started it and had taken nothing for it, {begun}; {self.ahead} were ahead of it"
        return (
            f"{where} took jobs for it, {self.run:.2f} s until those had left, "
            f"{self.free:.2f} s until their nodes were free, {self.start:.2f} s until Slurm started it, {begun}; "
            f"{self.turns} turn(s), {self.others} of its nodes went to other production jobs and {self.ours} to "
            f"preemptible ones, {self.ahead} were ahead of it, {self.updates} updates meanwhile"
        )


TURN = 1.0
"""Seconds apart from which on notices belong to another turn."""


def wait_of(log: Log, job: Job, production: frozenset[str]) -> Wait:
    """Say what a job of production that has started has waited for between its submission and its start."""
    started = job.started
    assert started is not None, f"slurmctld's log does not say that JobId={job.job_id} has started"
    told = sorted(moment for moment in job.taken.values() if moment <= started)
    same = {
        "ahead": sum(job.submitted < one < started for one in _starts_of_earlier(log, job, production)),
        "updates": sum(job.submitted <= moment <= started for moment, _ in log.updates),
    }
    if not told:
        return Wait(job.job_id, len(job.nodes), started - job.submitted, **same)
    left, free = _vacated(log, job, told[0], started)
    return Wait(
        job.job_id, len(job.nodes), told[0] - job.submitted, left - told[0], free - left, started - free,
        turns=1 + sum(later - earlier > TURN for earlier, later in itertools.pairwise(told)),
        **_given_away(log, job, production, told[0], started), **same,
    )  # fmt: skip


def _starts_of_earlier(log: Log, job: Job, production: frozenset[str]) -> Iterator[float]:
    """When each job of production that was submitted before this one has started."""
    for one in map(log.job, production):
        if one is not job and one.started is not None and one.submitted < job.submitted:
            yield one.started


def _vacated(log: Log, job: Job, since: float, started: float) -> tuple[float, float]:
    """When the last of the jobs that were taken for it in the first turn had ended, and when all were off their nodes.

    ``since``: when the first was taken.
    """
    first_turn = [log.job(name) for name, moment in job.taken.items() if moment <= since + TURN]
    left = max((one.ended for one in first_turn if one.ended is not None and one.ended <= started), default=since)
    over = [one.freed for one in first_turn if one.freed is not None and one.freed <= started]
    return left, max(left, max(over, default=left))


def _given_away(log: Log, job: Job, production: frozenset[str], since: float, started: float) -> dict[str, int]:
    """How many of the nodes that were vacated for it others were given before it started."""
    vacated: dict[str, float] = {}
    for one in map(log.job, job.taken):  # a node that was vacated twice counts from the first time
        vacated = dict.fromkeys(one.nodes, one.ended if one.ended is not None else started) | vacated
    given = {"others": 0, "ours": 0}
    for one in log.jobs.values():
        if one is not job and one.started is not None and since <= one.started <= started:
            lost = sum(vacated.get(node, started) < one.started for node in one.nodes)
            given["others" if one.job_id in production else "ours"] += lost
    return given
