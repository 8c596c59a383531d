"""What a trace's nodes are worth to any way to train: when they can be used, and how fast training is then. Pure."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from liver_slurm.config.layouts import feasible_layouts, live_workers
from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.simulation.costs import Costs, StepTimes
from liver_slurm.simulation.elastic_run import look_seconds
from liver_slurm.simulation.setting import Setting, most_devices, workers_per_node
from liver_slurm.simulation.trace import Span

Kind = Literal["ready", "notice", "gone", "choice"]
"""The last one is that of a run that follows what others chose."""


@dataclass(frozen=True)
class News:
    """Something that happens to one node, as a run hears of it. Times are the trace's."""

    time: float
    kind: Kind
    node: str


class Speeds:
    """The fastest layout for any number of workers, of several; of equal ones the smallest."""

    def __init__(self, layouts: Sequence[Layout], times: StepTimes) -> None:
        self._times = times
        self._sizes: list[int] = []
        self._best: list[Layout] = []
        """The fastest of all that are not larger, of each size."""
        fastest: tuple[float, int] | None = None
        for layout in sorted(layouts, key=lambda one: one.size):
            speed = (times(layout), layout.size)
            if fastest is None or speed < fastest:
                fastest = speed
                self._sizes.append(layout.size)
                self._best.append(layout)

    def best(self, workers: int) -> Layout | None:
        """Return the fastest layout that so many workers can have; None: there is none."""
        found = bisect_right(self._sizes, workers)
        return self._best[found - 1] if found else None

    def step_s(self, layout: Layout) -> float:
        """Return the seconds of a step."""
        return self._times(layout)


@dataclass(frozen=True)
class Capacity:
    """Everything that a way to train is simulated from."""

    setting: Setting
    config: JobConfig
    costs: Costs
    speeds: Speeds
    """Of all layouts that the job allows."""

    @cached_property
    def guaranteed(self) -> int:
        """Workers that are always there."""
        return live_workers(self.config.live)

    @cached_property
    def most(self) -> int:
        """Workers that the job file lets the run have at most."""
        return most_devices(self.config)

    @cached_property
    def _each(self) -> int:
        return workers_per_node(self.config)

    def workers(self, nodes: int) -> int:
        """Count the workers that a run has with so many nodes."""
        return min(self.most, self.guaranteed + nodes * self._each)

    def only(self, layouts: Sequence[Layout]) -> Speeds:
        """Return the speeds of some layouts."""
        return Speeds(layouts, StepTimes(self.config, self.costs.step_s))

    def layouts(self) -> list[Layout]:
        """Return all layouts that the job allows."""
        return feasible_layouts(self.config, self.most)

    def news(self, ready_s: float) -> list[News]:
        """Return what a run hears of nodes, in order.

        It has as many nodes as the job file lets it have, and takes another one that is on offer when one goes. A node
        can be used half a look, the queue and ``ready_s`` after it was taken; of one that goes before it never hears.

        Args:
            ready_s: seconds from the start of a job on the node until the run can use it.
        """
        delay = look_seconds(self.config) / 2 + self.setting.queue_wait.mean + ready_s
        found: list[News] = []
        for span, taken, number in self.taken():
            ready, told, node = taken + delay, self._told(span), f"{span.node} {number}"
            if ready >= told:
                continue
            found.append(News(ready, "ready", node))
            if span.end < self.setting.trace.seconds:
                if told < span.end:
                    found.append(News(told, "notice", node))
                found.append(News(span.end, "gone", node))
        return sorted(found, key=lambda one: (one.time, one.kind != "gone", one.node))

    def _told(self, span: Span) -> float:
        """Return when a run knows that a node goes."""
        without_word = span.sudden or span.end >= self.setting.trace.seconds
        return span.end if without_word else span.end - self.setting.notice

    def taken(self) -> Iterator[tuple[Span, float, int]]:
        """Yield spans of nodes that a run takes, when it does, and a number for each."""
        slots = -(-(self.most - self.guaranteed) // self._each)
        spans = self.setting.trace.spans
        coming = [(span.begin, number) for number, span in enumerate(spans)]
        heapq.heapify(coming)
        waiting: list[int] = []
        held: list[float] = []  # when each of the nodes that the run has goes; a heap
        while coming or (waiting and held):
            if held and (not coming or held[0] <= coming[0][0]):
                now = heapq.heappop(held)
            else:
                now, number = heapq.heappop(coming)
                waiting.append(number)
            while waiting and len(held) < slots:
                number = waiting.pop(0)
                if self._told(spans[number]) > now:
                    heapq.heappush(held, self._told(spans[number]))
                    yield spans[number], now, number

    def offers(self) -> Iterator[tuple[float, float, int]]:
        """Yield begin, end and nodes on offer of each stretch of the trace."""
        counts = [*self.setting.trace.counts(), (self.setting.trace.seconds, 0)]
        for (begin, nodes), (end, _) in pairwise(counts):
            yield begin, end, nodes


def capacity(setting: Setting, config: JobConfig, costs: Costs) -> Capacity:
    """Make the capacity of one setting."""
    times = StepTimes(config, costs.step_s)
    return Capacity(setting, config, costs, Speeds(feasible_layouts(config, most_devices(config)), times))
