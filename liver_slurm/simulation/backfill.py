"""A queue that gives jobs whole nodes as they come, and lets others past the first where they do not delay it. Pure.

That is EASY backfill (Lifka 1995; Mu'alem and Feitelson 2001), as Slurm's backfill does for the job that waits longest:
by the jobs' time limits it is known when the first one in the queue can start at the latest, its reservation, and which
nodes are left over then. A later job starts if it ends before that by its limit, or needs no more than those.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

DEPTH = 100
"""Jobs behind the first one that are looked at for backfill; Slurm's bf_max_job_test."""


@dataclass(frozen=True)
class Request:
    """One job as it was submitted. Times are seconds."""

    submitted: float
    nodes: int
    runtime: float
    limit: float


@dataclass(frozen=True)
class Served:
    """One job that was started."""

    request: Request
    start: float
    nodes: tuple[int, ...]
    """From 0 on."""


def serve(requests: Sequence[Request], nodes: int, until: float) -> list[Served]:
    """Return the jobs that start before ``until``, by start.

    Args:
        requests: by time of submission; none is larger than the cluster.
        nodes: of the cluster.
        until: seconds.
    """
    queue = _Queue(nodes)
    for request in requests:
        queue.pass_until(min(request.submitted, until))
        if request.submitted >= until:
            break
        queue.submit(request)
    queue.pass_until(until)
    return queue.served


class _Queue:
    def __init__(self, nodes: int) -> None:
        self.served: list[Served] = []
        self._free = list(range(nodes))  # a heap: nodes with low numbers are taken first
        self._waiting: deque[Request] = deque()
        self._ends: list[tuple[float, int]] = []
        self._running: dict[int, Served] = {}
        self._now = 0.0

    def submit(self, request: Request) -> None:
        """Take a job in; all that ended before it was submitted has ended."""
        self._now = request.submitted
        self._waiting.append(request)
        self._schedule()

    def pass_until(self, time: float) -> None:
        """Let jobs end, and others start in their places."""
        while self._ends and self._ends[0][0] < time:
            self._now, number = heapq.heappop(self._ends)
            for node in self._running.pop(number).nodes:
                heapq.heappush(self._free, node)
            self._schedule()

    def _schedule(self) -> None:
        while self._waiting and self._waiting[0].nodes <= len(self._free):
            self._start(self._waiting.popleft())
        if len(self._waiting) < 2 or not self._free:
            return
        reserved, spare = self._reservation(self._waiting[0].nodes)
        for request in [self._waiting[place] for place in range(1, min(len(self._waiting), DEPTH + 1))]:
            is_short = self._now + request.limit <= reserved
            if request.nodes <= len(self._free) and (is_short or request.nodes <= spare):
                self._waiting.remove(request)
                self._start(request)
                spare -= 0 if is_short else request.nodes
                if not self._free:
                    return

    def _reservation(self, nodes: int) -> tuple[float, int]:
        """Return when so many nodes are free at the latest, and how many are left over then."""
        free = len(self._free)
        ends = sorted((job.start + job.request.limit, job.request.nodes) for job in self._running.values())
        for end, freed in ends:
            free += freed
            if free >= nodes:
                return end, free - nodes
        return self._now, free

    def _start(self, request: Request) -> None:
        taken = tuple(heapq.heappop(self._free) for _ in range(request.nodes))
        number = len(self.served)
        job = Served(request, self._now, taken)
        self.served.append(job)
        self._running[number] = job
        heapq.heappush(self._ends, (self._now + request.runtime, number))
