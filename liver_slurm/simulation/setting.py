"""What all cases of a simulation have in common: the trace, and how the cluster treats our jobs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from liver_slurm.base.errors import BadInput
from liver_slurm.config.layouts import live_workers
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.units import most_workers, standby_units, warning_seconds
from liver_slurm.simulation.cluster import Conditions
from liver_slurm.simulation.trace import Trace

BEGIN = 1e6
"""Time of a trace's beginning, seconds since the epoch: none of the moments that mean "never" to the product."""


@dataclass(frozen=True)
class QueueWait:
    """How long a standby job waits in the queue although nodes are idle, seconds."""

    kind: str = "fixed"
    """``fixed``, ``uniform`` or ``exp``."""
    low: float = 0.0
    high: float = 0.0

    @property
    def mean(self) -> float:
        """Its mean."""
        return (self.low + self.high) / 2

    def draw(self, random: Random) -> float:
        """Draw one."""
        if self.kind == "exp":
            return random.expovariate(1.0 / self.mean) if self.mean > 0 else 0.0
        return random.uniform(self.low, self.high) if self.kind == "uniform" else self.low

    def __str__(self) -> str:
        if self.kind == "exp":
            return f"exponential, {self.mean:g} s on average"
        return f"{self.low:g} to {self.high:g} s" if self.kind == "uniform" else f"{self.low:g} s"


def parse_queue_wait(text: str) -> QueueWait:
    """Read ``S``, ``S-S`` or ``exp:S``.

    Raises:
        BadInput: it is none of them.
    """
    number = r"\d+(?:\.\d+)?"
    if match := re.fullmatch(f"({number})-({number})", text):
        low, high = float(match[1]), float(match[2])
        if low <= high:
            return QueueWait("uniform", low, high)
    elif match := re.fullmatch(f"exp:({number})", text):
        return QueueWait("exp", float(match[1]), float(match[1]))
    elif re.fullmatch(number, text):
        return QueueWait("fixed", float(text), float(text))
    raise BadInput(f"--queue-wait {text}: write seconds as 30, as 10-60, or as exp:30 for a mean")


@dataclass(frozen=True)
class Setting:
    """A trace, and how its cluster treats our jobs."""

    trace: Trace
    notice: float = 30.0
    """Seconds from a notice to the end; 0: none is given."""
    queue_wait: QueueWait = QueueWait()
    seed: int = 0

    @property
    def phase(self) -> float:
        """Where in the grid of looks at Slurm the trace begins; from 0 to 1."""
        return Random(f"phase {self.seed}").random()

    def offered(self, config: JobConfig) -> list[tuple[float, int]]:
        """Return from which second on how many workers were to be had: guaranteed ones, and those of nodes on offer, as
        far as the job grows."""
        guaranteed, most, each = live_workers(config.live), most_devices(config), workers_per_node(config)
        return [(begin, min(most, guaranteed + nodes * each)) for begin, nodes in self.trace.counts()]

    def offered_device_s(self, config: JobConfig) -> float:
        """Return the device-seconds that were to be had, as ``liver-slurm goodput`` counts them, too."""
        counts = [*self.offered(config), (self.trace.seconds, 0)]
        return sum(workers * (end - begin) for (begin, workers), (end, _) in pairwise(counts))


def most_devices(config: JobConfig) -> int:
    """Count the workers that the job file lets the run have at most."""
    guaranteed = live_workers(config.live)
    most = guaranteed + most_workers(config.standby)
    limit = config.elastic.max_workers
    return most if limit is None else min(most, max(guaranteed, limit))


def workers_per_node(config: JobConfig) -> int:
    """Count the workers that one node of the trace has room for: as many as standby jobs have on one."""
    return max(unit.tasks_per_node for unit in standby_units(config.standby))


def conditions(config: JobConfig, setting: Setting, random: Random) -> Conditions:
    """Make the cluster's part of a setting: nodes of one kind, in the first partition of the job's standbys.

    Raises:
        BadInput: the job has no standbys.
    """
    units = standby_units(config.standby)
    if config.standby.max_jobs == 0 or not units[0].partitions:
        raise BadInput("standby.max_jobs and standby.partitions: a run without standby jobs has nothing to simulate")
    draw: Callable[[], float] = lambda: setting.queue_wait.draw(random)  # noqa: E731
    return Conditions(
        partition=units[0].partitions[0],
        tasks=workers_per_node(config),
        cpus=max(unit.tasks_per_node * unit.cpus_per_task for unit in units),
        gpus=max(unit.tasks_per_node * unit.gpus_per_task for unit in units),
        notice=setting.notice,
        warning=warning_seconds(units[0]),
        queue_wait=draw,
    )
