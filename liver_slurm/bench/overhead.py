"""``bench overhead``: what elasticity costs a job that is never resized.

Two figures, each from whole runs under a coordinator, of the smallest model on CPUs and of 1.3e9 parameters on cards:

- ``cpu_share``: CPU time of the workers' threads that are there for elasticity (control thread, ZeroMQ's) over that of
  all their threads, while training is in its usual state. Heartbeats take their time whether or not training gets its
  core, so the share grows where others compete for it; ``cpu_of_wall``, the same CPU time over the wall time of a
  worker, does not.
- ``step_time_ratio``: a usual step of such a run over that of the same model trained in a plain loop, with the same
  step and without coordinator, control thread and directives. Runs of both kinds take turns; the ratio is the median
  of the pairs'.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from liver_slurm.app.local_run import run_local
from liver_slurm.base.errors import ExitCode, LiverError
from liver_slurm.bench import machine
from liver_slurm.bench.elastic import said
from liver_slurm.bench.figures import usual
from liver_slurm.bench.jobs import BILLION, BY_NAME, SIZES, Size, job
from liver_slurm.bench.restart import train_alone
from liver_slurm.bench.threads import Thread, by_name, read_threads, share, spent
from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.client import request
from liver_slurm.protocol.messages import CancelRequest, StatusRequest
from liver_slurm.rundir.metrics import read_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run

LAYOUTS = ("tp1pp1dp1", "tp1pp1dp2")
TARGET = 0.003
WARM = 5
"""Steps before measuring begins."""


@dataclass
class Watch:
    """Looks at the threads of a run's workers twice, and ends the run."""

    run_dir: RunDir
    steps: int
    seconds: float
    """Time between the looks at least."""
    pids: tuple[int, ...] = ()
    before: list[Thread] = field(default_factory=list)
    since: float = 0.0
    used: list[Thread] | None = None
    wall_s: float = 0.0
    """Time between the looks."""

    def look(self) -> None:
        """Called about ten times a second."""
        if self.used is not None or not self.run_dir.metrics.exists():
            return
        steps = sum(1 for _ in read_metrics(self.run_dir.metrics))
        if not self.before and steps >= WARM:
            self.pids = tuple(one["pid"] for one in self._status()["workers"])
            self.before, self.since = read_threads(self.pids), time.monotonic()
        elif self.before and steps >= WARM + self.steps and time.monotonic() >= self.since + self.seconds:
            self.used = spent(self.before, read_threads(self.pids))
            self.wall_s = time.monotonic() - self.since
            request(self.run_dir, CancelRequest())

    def _status(self) -> dict[str, Any]:
        document: dict[str, Any] = request(self.run_dir, StatusRequest()).result
        return document


@dataclass(frozen=True)
class _Run:
    step_s: float
    cpu_share: float
    cpu_of_wall: float
    by_name: dict[str, float]


def run(quick: bool, sizes: Sequence[str] = ()) -> dict[str, Any]:
    """Measure; ``quick``: the first case, one pair of runs.

    Args:
        sizes: names of models to measure; none: the one that suits this machine.
    """
    cards = machine.count_gpus()
    todo = _todo(cards, [BY_NAME[name] for name in sizes])
    if quick:
        return measure(todo[:1], 1, 10, 2.0)
    return measure(todo, *((3, 40, 15.0) if cards else (5, 60, 15.0)))


def _todo(cards: int, sizes: Sequence[Size]) -> list[tuple[Size, Layout]]:
    """Return the cases on a machine of so many cards, a card a rank; 0: on its CPUs."""
    layouts = [Layout.parse(text) for text in LAYOUTS]
    chosen = sizes or [BILLION if cards else SIZES[0]]
    return [(size, layout) for size in chosen for layout in layouts if not cards or layout.size <= cards]


def measure(todo: Sequence[tuple[Size, Layout]], repetitions: int, steps: int, seconds: float) -> dict[str, Any]:
    """Measure these cases; the document. ``steps`` and ``seconds``: what each run is measured for at least."""
    begun = time.monotonic()
    gpu = machine.has_gpu()
    document: dict[str, Any] = {"bench": "overhead", "machine": machine.describe(gpu)}
    cases = []
    for number, (size, layout) in enumerate(todo, start=1):
        print(f"{number}/{len(todo)} {size.name} {layout}", file=sys.stderr)
        with machine.memory_folder() as folder:
            config = job(size, folder, layout, distributed_optimizer=True, gpus=1 if gpu else 0)
            name = f"{size.name} {layout}"
            cases.append({"name": name} | _case(config, layout, folder, gpu, repetitions, steps, seconds))
    return document | {"cases": cases, "target_cpu_share": TARGET, "seconds": time.monotonic() - begun}


def _case(
    config: JobConfig, layout: Layout, folder: Path, gpu: bool, repetitions: int, steps: int, seconds: float
) -> dict[str, Any]:
    elastic: list[_Run] = []
    plain: list[float] = []
    for _ in range(repetitions):
        elastic.append(_elastic(config, layout, steps, seconds))
        plain.append(usual(train_alone(config, layout, folder, gpu, steps + WARM)[WARM:]))
    pairs = [ours.step_s / alone for ours, alone in zip(elastic, plain, strict=True)]
    return {
        "layout": str(layout),
        "cpu_share": statistics.median(one.cpu_share for one in elastic),
        "step_time_ratio": statistics.median(pairs),
        "cpu_of_wall": statistics.median(one.cpu_of_wall for one in elastic),
        "cpu_share_each": [one.cpu_share for one in elastic],
        "step_time_ratio_each": pairs,
        "step_s": statistics.median(one.step_s for one in elastic),
        "plain_step_s": statistics.median(plain),
        "cpu_seconds": elastic[-1].by_name,
        "heartbeat_s": config.job.heartbeat,
        "repetitions": repetitions,
    }


def _elastic(config: JobConfig, layout: Layout, steps: int, seconds: float) -> _Run:
    run_dir = create_run(config)
    watch = Watch(run_dir, steps, seconds)
    code = run_local(config, run_dir, layout.size, standbys=0, on_progress=watch.look)
    if code == ExitCode.CANCELLED and watch.used is None:
        raise KeyboardInterrupt
    if watch.used is None:
        raise LiverError(f"the run ended with {code} before it was measured{said(run_dir)}")
    ends = [one.end for one in read_metrics(run_dir.metrics)][WARM:]
    ours = sum(thread.seconds for thread in watch.used if thread.ours)
    return _Run(usual(ends), share(watch.used), ours / watch.wall_s / layout.size, by_name(watch.used))


def table(document: dict[str, Any]) -> str:
    """Return the document for people."""
    rows = [
        [
            case["name"],
            f"{case['cpu_share']:.2%}",
            f"{case['cpu_of_wall']:.3%}",
            f"{case['step_time_ratio']:.3f}",
            f"{case['step_s'] * 1000:.1f} ms",
            f"{case['plain_step_s'] * 1000:.1f} ms",
        ]
        for case in document["cases"]
    ]
    headers = ["case", "our threads' share of CPU time", "of a core", "step time, ours over plain", "ours", "plain"]
    where = document["machine"]
    return "\n".join(
        [
            tabulate(rows, headers, disable_numparse=True),
            f"{where['cores']} cores, {where['device']}; {document['seconds']:.0f} s in all",
        ]
    )
