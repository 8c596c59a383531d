"""What comes of an elastic run beside a production load, in figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from scale_log import Wait

MOST_ADDED = 2.0
"""Seconds by which the run may delay a production start, in the 99th percentile."""
COMPANY = {
    "run": "beside an elastic run",
    "plain": "beside ordinary preemptible jobs that end at once when they are taken",
    "none": "production alone",
}


@dataclass(frozen=True)
class Measured:
    """What came of it. Delays count from the moment at which a job was due to its script's first line, seconds."""

    seconds: float
    nodes: int
    starts: int
    """Production jobs that were due in that time."""
    alone: list[float]
    """Delays of production before the run began."""
    delays: list[float]
    """Those beside it; of a start that was not seen, what it had waited by the last look."""
    queries_per_minute: float
    """In the mean of that time."""
    queries_in_a_minute: int
    """The most in any, from before the run began."""
    unseen: int = 0
    """Production jobs that had not started at the last look."""
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
    """Of all starts that were seen, the slowest first."""
    updates: tuple[float, ...] = ()
    """Seconds that each update of a job took slurmctld, with its wait for locks."""
    looks: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Seconds that slurmctld's schedulers took for a look at the queue beside the run, in the mean and at most."""

    @property
    def slow(self) -> list[Wait]:
        """What starts have waited for that are delayed by more than :data:`MOST_ADDED`, the slowest first."""
        return [one for one in self.waits if one.total - self.usual > MOST_ADDED]

    @property
    def usual(self) -> float:
        """Seconds from when a job is due to its first line where production is alone, in the median."""
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
            f"production alone: {self.usual:.2f} s from when a job is due to its start (median of {len(self.alone)})",
            f"the slowest of those: {self.alone[-1]:.2f} s",
            f"added to that: {quantiles}, at most {most:.2f} s, of {self.starts} starts",
            *([f"{self.unseen} starts were not seen, and count as if at the last look"] if self.unseen else ()),
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
