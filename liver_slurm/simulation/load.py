"""A production load with stated statistics, for who has no trace: jobs drawn by lot, and what they leave idle. Pure.

Sizes are powers of two, of which one of n nodes is n^-``sizes`` times as frequent as one of a single node. Runtimes are
lognormal, cut off at ``longest``. Gaps between submissions are lognormal with a coefficient of variation ``cv``, or
exponential where that is 1, and shorter by day than by night. As many jobs are drawn as ask for ``utilization`` of all
node-time. A first-come queue with backfill (:mod:`liver_slurm.simulation.backfill`) gives them nodes. Where the
defaults are from is in docs/simulation.md.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from random import Random

from liver_slurm.base.errors import BadInput
from liver_slurm.simulation.backfill import Request, Served, serve
from liver_slurm.simulation.trace import Span, Trace, from_spans

DAY = 86400.0
WARM_DAYS = 2.0
"""Days before the trace begins in which the cluster, empty at first, fills; no longer than the trace."""
PEAK = 14 * 3600.0
"""Time of day at which most jobs are submitted; a trace begins at midnight."""
GRID = 600.0
"""Seconds of the steps in which the daily cycle is followed."""


@dataclass(frozen=True)
class Load:
    """What is stated of a load; the fields' names are those of ``--load``."""

    nodes: int
    """Of the cluster."""
    days: float = 7.0
    """Length of the trace."""
    utilization: float = 0.8
    """Share of all node-time that jobs ask for."""
    median: float = 135.0
    """Of runtimes, seconds."""
    p99: float = 7 * 3600.0
    """Of runtimes, before they are cut off, seconds."""
    longest: float = 2 * DAY
    """Limit of the partition, seconds."""
    largest: int = 0
    """Nodes of the largest job; 0: a quarter of the cluster."""
    sizes: float = 1.0
    """0: all sizes are equally frequent; 1: all have the same share of node-time."""
    cv: float = 11.3
    """Coefficient of variation of gaps between submissions; 1: Poisson."""
    daily: float = 0.5
    """From 0, no cycle, to 1, nothing is submitted at the quietest hour."""
    limits: float = 3.0
    """A job's time limit is drawn between its runtime and so many times that."""

    @property
    def largest_job(self) -> int:
        """Nodes of the largest job."""
        return self.largest or max(1, self.nodes // 4)

    @property
    def sigma(self) -> float:
        """Standard deviation of the runtimes' logarithms."""
        return math.log(self.p99 / self.median) / statistics.NormalDist().inv_cdf(0.99)


def parse_load(text: str) -> Load:
    """Read ``nodes=N,utilization=U,…``.

    Raises:
        BadInput: a key is unknown, or its value cannot be.
    """
    known = {one.name: one.type for one in fields(Load)}
    given: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in known:
            raise BadInput(f"--load: {part!r}: write KEY=VALUE, with one of {', '.join(known)}")
        try:
            given[name] = int(value) if known[name] == "int" else float(value)
        except ValueError:
            raise BadInput(f"--load: {name} is {value!r}; write a number") from None
    if "nodes" not in given:
        raise BadInput("--load: nodes is missing; write nodes=N for a cluster of N nodes")
    load = Load(**given)  # type: ignore[arg-type]
    for fails, what in _faults(load):
        if fails:
            raise BadInput(f"--load: {what}")
    return load


def _faults(load: Load) -> Sequence[tuple[bool, str]]:
    finite = all(math.isfinite(getattr(load, one.name)) for one in fields(Load))
    return (
        (not finite, "a value is no finite number"),
        (load.nodes < 1, f"nodes is {load.nodes}; write 1 or more"),
        (load.days <= 0, f"days is {load.days:g}; write more than 0"),
        (not 0 < load.utilization <= 1, f"utilization is {load.utilization:g}; write a share above 0, up to 1"),
        (load.median <= 0, f"median is {load.median:g}; write seconds, more than 0"),
        (load.p99 < load.median, f"p99 is {load.p99:g}, less than the median of {load.median:g}; write more"),
        (load.longest < load.median, f"longest is {load.longest:g}, less than the median; write more"),
        (not 0 <= load.largest <= load.nodes, f"largest is {load.largest}; write 1 to {load.nodes}"),
        (load.cv < 0, f"cv is {load.cv:g}; write 0 or more"),
        (not 0 <= load.daily <= 1, f"daily is {load.daily:g}; write 0 to 1"),
        (load.limits < 1, f"limits is {load.limits:g}; write 1 or more"),
    )


def generate(load: Load, random: Random) -> Trace:
    """Return the trace of nodes that one draw of a load leaves idle."""
    seconds = load.days * DAY
    warm = math.ceil(min(WARM_DAYS, load.days)) * DAY  # whole days: the trace begins at midnight
    requests = draw(load, warm + seconds, random)
    served = serve(requests, load.nodes, warm + seconds)
    spans = _idle(served, load.nodes, warm, warm + seconds)
    return from_spans("load", seconds, spans, note=describe(load, requests, served, warm))


def _idle(served: Sequence[Served], nodes: int, begin: float, end: float) -> list[Span]:
    """Return when each node has no job, from ``begin`` on."""
    free = [0.0] * nodes
    spans = []
    for job in served:  # by start
        for node in job.nodes:
            if job.start > max(begin, free[node]):
                spans.append(Span(f"node{node + 1}", free[node] - begin, job.start - begin))
            free[node] = job.start + job.request.runtime
    spans += [Span(f"node{node + 1}", since - begin, end - begin) for node, since in enumerate(free) if since < end]
    return spans


# ---- drawing -------------------------------------------------------------------------------------------------------


def draw(load: Load, seconds: float, random: Random) -> list[Request]:
    """Draw the jobs of so many seconds, in the order in which they are submitted."""
    asked = load.utilization * load.nodes * seconds
    size = _sizes(load, random)
    drawn: list[tuple[int, float]] = []
    work = 0.0
    while work < asked:
        nodes, runtime = size(), min(load.longest, random.lognormvariate(math.log(load.median), load.sigma))
        if work + nodes * runtime - asked > asked - work and drawn:
            break  # without it the load is nearer to what was asked for
        drawn.append((nodes, runtime))
        work += nodes * runtime
    times = _submissions(load, len(drawn), seconds, random)
    return [
        Request(time, nodes, runtime, min(load.longest, runtime * random.uniform(1.0, load.limits)))
        for time, (nodes, runtime) in zip(times, drawn, strict=True)
    ]


def _sizes(load: Load, random: Random) -> Callable[[], int]:
    sizes = [1 << power for power in range(load.largest_job.bit_length())]
    weights = list(accumulate(size**-load.sizes for size in sizes))
    return lambda: random.choices(sizes, cum_weights=weights)[0]


def _submissions(load: Load, count: int, seconds: float, random: Random) -> list[float]:
    """Draw when jobs are submitted."""
    sigma = math.sqrt(math.log(1.0 + load.cv**2))
    gap: Callable[[], float] = lambda: random.expovariate(1.0) if load.cv == 1.0 else random.lognormvariate(0.0, sigma)  # noqa: E731
    at = list(accumulate(gap() for _ in range(count + 1)))
    clock = _DailyCycle(load.daily, seconds)
    return [clock.time(place / at[-1]) for place in at[:-1]]


class _DailyCycle:
    """Shares of all submissions to times: more by day than by night."""

    def __init__(self, daily: float, seconds: float) -> None:
        self._seconds = seconds
        self._times = [min(seconds, step * GRID) for step in range(math.ceil(seconds / GRID) + 1)]
        whole = [self._made(daily, time) for time in self._times]
        self._shares = [one / whole[-1] for one in whole]

    @staticmethod
    def _made(daily: float, time: float) -> float:
        """Integrate 1 + daily · cos(2π (t - peak) / day) from 0 to a time."""
        turn = 2 * math.pi / DAY
        return time + daily / turn * (math.sin(turn * (time - PEAK)) + math.sin(turn * PEAK))

    def time(self, share: float) -> float:
        """Return when so large a share of all jobs was submitted."""
        upper = min(max(1, bisect_left(self._shares, share)), len(self._shares) - 1)
        low, high = self._shares[upper - 1], self._shares[upper]
        part = (share - low) / (high - low) if high > low else 0.0
        return self._times[upper - 1] + part * (self._times[upper] - self._times[upper - 1])


def describe(load: Load, requests: Sequence[Request], served: Sequence[Served], begin: float) -> str:
    """Say what one draw came to, for people."""
    end = begin + load.days * DAY
    asked = sum(one.nodes * one.runtime for one in requests) / (load.nodes * end)
    times = [(max(begin, one.start), min(end, one.start + one.request.runtime), one.request.nodes) for one in served]
    used = sum(nodes * max(0.0, until - since) for since, until, nodes in times) / (load.nodes * (end - begin))
    sizes = [one.nodes for one in requests]
    runtimes = sorted(one.runtime for one in requests)
    gaps = [later.submitted - one.submitted for one, later in pairwise(requests)]
    mean = statistics.fmean(gaps) if gaps else 0.0
    variation = statistics.pstdev(gaps) / mean if mean else 0.0
    together = sum(gap < 1.0 for gap in gaps) / max(1, len(gaps))
    wait = statistics.fmean(one.start - one.request.submitted for one in served) if served else 0.0
    return (
        f"{len(requests)} jobs that ask for {asked:.1%} of {load.nodes} nodes and have {used:.1%}; sizes up to "
        f"{max(sizes)}, {statistics.fmean(sizes):.1f} on average; runtimes {statistics.median(runtimes):.0f} s in the "
        f"median, {runtimes[int(0.99 * (len(runtimes) - 1))]:.0f} s in the 99th percentile; gaps vary by "
        f"{variation:.1f}, {together:.0%} under a second; mean wait {wait:.0f} s"
    )
