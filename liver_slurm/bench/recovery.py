"""``bench recovery``: what the sudden death of a worker costs training: from mirrors, from a checkpoint, by a restart.

A worker of a run of plain processes is killed with SIGKILL; a warm one that stands by takes its place, so the layout
stays. On cards there is none, as each rank has one of its own: the run goes on with the worker that is left.

The figure is seconds lost: from the kill until a step is done that was not done before, less a usual step. The same
without mirrors, where all go back to the newest checkpoint in their processes. The baseline is the restart at its best
of ``bench reconfigure``, without the time that it saves its state in: new processes, and the checkpoint loaded. What
was trained since that checkpoint is not counted against it.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tabulate import tabulate

from liver_slurm.app.local_run import run_local
from liver_slurm.base.errors import ControlError, ExitCode, LiverError
from liver_slurm.bench import machine
from liver_slurm.bench.elastic import PATIENCE, said
from liver_slurm.bench.figures import median_of, ratio, usual
from liver_slurm.bench.jobs import BILLION, BY_NAME, SIZES, Size, job, parameters
from liver_slurm.bench.restart import Baseline
from liver_slurm.config.schema import CheckpointSection, JobConfig, RecoverySection
from liver_slurm.observability.status import RunStatus, from_status
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.client import request
from liver_slurm.protocol.messages import CancelRequest, StatusRequest
from liver_slurm.rundir.checkpoints import list_checkpoints
from liver_slurm.rundir.event_log import read_events
from liver_slurm.rundir.events import RecoveryPlanned, WorkerLost, WorldLive
from liver_slurm.rundir.metrics import StepMetrics, read_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run

LAYOUT, ALONE = Layout.parse("tp1pp1dp2"), Layout.parse("tp1pp1dp1")
DEATHS = 3
"""How often a worker is killed in each run; on cards, how many runs there are."""
STEPS, EVERY = 8, 5
"""Steps of a world before a worker is killed; steps between two checkpoints, where state comes from there."""
WAYS: tuple[Literal["mirror", "checkpoint"], ...] = ("mirror", "checkpoint")


class Kill(NamedTuple):
    """When a worker was killed, seconds since the epoch, in which generation, whom, and the last step by then."""

    at: float
    generation: int
    worker: str
    step: int


@dataclass(frozen=True)
class Death:
    """One kill, and what came of it."""

    detected_s: float
    """From the kill until it was believed."""
    trains_s: float
    """From the kill until a step of the next world was done."""
    again_s: float
    """From the kill until a step was done that was not done before."""
    usual_s: float
    redone: int
    """Steps that had to be trained again."""

    @property
    def lost_s(self) -> float:
        """Seconds lost."""
        return max(0.0, self.again_s - self.usual_s)


@dataclass
class Killer:
    """Kills a worker of a run several times; :meth:`look` is called about ten times a second."""

    run_dir: RunDir
    deaths: int
    way: Literal["mirror", "checkpoint"]
    standbys: bool
    """Others stand by to take a dead one's place."""
    kills: list[Kill] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    over: bool = False
    problem: str = ""

    def look(self) -> None:
        """Kill a worker if the world has trained for a while and has what the next one needs."""
        if self.over:
            return
        try:
            status = from_status(request(self.run_dir, StatusRequest()).result)
        except ControlError:
            return  # the coordinator is starting; a run that ends is seen by who waits for it
        if time.monotonic() - self.since > PATIENCE:
            self._end(f"nothing could be killed for {PATIENCE:g} s")
        elif self._ready(status):
            self.since = time.monotonic()
            if len(self.kills) == self.deaths:
                self._end("")
            else:
                victim = status.workers[-1]
                assert isinstance(victim.pid, int)
                self.kills.append(Kill(time.time(), status.generation, victim.worker, self._last_step()))
                os.kill(victim.pid, signal.SIGKILL)

    def _ready(self, status: RunStatus) -> bool:
        lines = [line for line in read_metrics(self.run_dir.metrics) if line.generation == status.generation]
        new = not self.kills or status.generation > self.kills[-1].generation
        if not new or len(lines) <= STEPS:
            return False
        if self.kills and lines[-1].step <= self.kills[-1].step:
            return False  # what was lost is being trained again
        if len(self.kills) == self.deaths:
            return True
        if self.way == "mirror":
            held = all(worker.mirror == "whole" for worker in status.workers)
        else:
            held = bool(list_checkpoints(self.run_dir.checkpoints))
        return held and (not self.standbys or any(worker.warm is True for worker in status.standbys))

    def _last_step(self) -> int:
        return max(line.step for line in read_metrics(self.run_dir.metrics))

    def _end(self, problem: str) -> None:
        self.over, self.problem = True, problem
        request(self.run_dir, CancelRequest())


def run(quick: bool, sizes: Sequence[str] = ()) -> dict[str, Any]:
    """Measure; ``quick``: the smallest model, one death of each kind.

    Args:
        sizes: names of models to measure; none: the smallest two, or the one that suits cards.
    """
    begun, gpu = time.monotonic(), machine.count_gpus() >= LAYOUT.size
    chosen = [BY_NAME[name] for name in sizes] or ([BILLION] if gpu else list(SIZES[: 1 if quick else 2]))
    document: dict[str, Any] = {"bench": "recovery", "machine": machine.describe(gpu)}
    cases = []
    for number, size in enumerate(chosen, start=1):
        print(f"{number}/{len(chosen)} {size.name}", file=sys.stderr)
        with machine.memory_folder() as folder:
            cases.append(_case(size, folder, gpu, 1 if quick else DEATHS))
    return document | {
        "cases": cases,
        "ratio_mirror_median": median_of(cases, "ratio_mirror"),
        "seconds": time.monotonic() - begun,
        "definition": "seconds lost = from SIGKILL to the end of the first step that is new - a usual step",
    }


def _case(size: Size, folder: Path, gpu: bool, deaths: int) -> dict[str, Any]:
    after = ALONE if gpu else LAYOUT
    config = job(
        size, folder, LAYOUT, distributed_optimizer=True, mode="overlap", gpus=1 if gpu else 0, layouts=(LAYOUT, after)
    )
    case: dict[str, Any] = {"name": f"{size.name} {LAYOUT} distributed", "to": str(after)}
    case["parameters"] = parameters(config)
    baseline = Baseline(config, folder, gpu)
    restarts = baseline.chain([LAYOUT, after] if gpu else [LAYOUT] * (deaths + 1))
    case["restart_s"] = statistics.median(one.lost_s - one.parts["save_s"] for one in restarts)
    case["restart_parts"] = {
        name: statistics.median(one.parts[name] for one in restarts) for name in restarts[0].parts if name != "save_s"
    }
    for way in WAYS:
        each, runs = (1, deaths) if gpu else (deaths, 1)
        results = [killed(_with(config, way), each, way, standbys=not gpu) for _ in range(runs)]
        found, steps = [death for deaths, _ in results for death in deaths], results[-1][1]
        case |= {
            f"{way}_s": statistics.median(one.lost_s for one in found),
            f"{way}_detected_s": statistics.median(one.detected_s for one in found),
            f"{way}_trains_s": statistics.median(one.trains_s for one in found),
            f"{way}_redone": max(one.redone for one in found),
            f"{way}_each_s": [one.lost_s for one in found],
            f"{way}_each_again_s": [one.again_s for one in found],
            f"{way}_step_s": usual([line.end for line in steps if line.generation == 0]),
            f"ratio_{way}": ratio(case["restart_s"], statistics.median(one.lost_s for one in found)),
        }
        held = [line.mirror_s for line in steps if line.mirror_s is not None]
        if held:
            case["mirror_held_up_s"] = statistics.mean(held)
    return case


def _with(config: JobConfig, way: Literal["mirror", "checkpoint"]) -> JobConfig:
    saved = CheckpointSection(every=EVERY if way == "checkpoint" else 0, at_end=False)
    return replace(config, checkpoint=saved, recovery=RecoverySection(mirror="on" if way == "mirror" else "off"))


def killed(
    config: JobConfig, deaths: int, way: Literal["mirror", "checkpoint"], standbys: bool
) -> tuple[list[Death], list[StepMetrics]]:
    """Kill a worker of a run so often; what each death cost, and all steps of the run.

    Args:
        standbys: one stands by for each death.

    Raises:
        LiverError: the run failed.
        KeyboardInterrupt: Ctrl-C, or somebody cancelled the run.
    """
    run_dir = create_run(config)
    killer = Killer(run_dir, deaths, way, standbys)
    # Guaranteed workers that the layout has no use for stand by.
    code = run_local(config, run_dir, LAYOUT.size + deaths * standbys, standbys=0, on_progress=killer.look)
    if code == ExitCode.CANCELLED and not killer.over:
        raise KeyboardInterrupt
    if killer.problem or code != ExitCode.CANCELLED:
        raise LiverError(f"{killer.problem or 'the run failed'}{said(run_dir)}")
    return measured(run_dir, killer.kills)


def measured(run_dir: RunDir, kills: Sequence[Kill]) -> tuple[list[Death], list[StepMetrics]]:
    """Return what each kill cost, from the run's events and steps."""
    events, steps = list(read_events(run_dir.events)), list(read_metrics(run_dir.metrics))
    found = []
    for at, generation, victim, done in kills:
        believed = next(
            event.time
            for event in events
            if isinstance(event, WorkerLost) and event.worker == victim and event.time > at
        )
        planned = next(event for event in events if isinstance(event, RecoveryPlanned) and event.time > at)
        worlds = [event for event in events if isinstance(event, WorldLive) and event.generation > generation]
        new = [line for line in steps if line.generation >= worlds[0].generation]
        again = next(line.end for line in new if line.step > done)
        one = [line.end for line in new if line.generation == worlds[0].generation]
        found.append(Death(believed - at, one[0] - at, again - at, usual(one), max(0, done - planned.step)))
    return found, steps


def table(document: dict[str, Any]) -> str:
    """Return the document for people."""
    rows = [
        [
            case["name"],
            *(f"{case[f'{way}_s']:.2f} s" for way in ("restart", *WAYS)),
            *("–" if case[f"ratio_{way}"] is None else f"{case[f'ratio_{way}']:.0f}×" for way in WAYS),
            f"{case['mirror_detected_s']:.2f} s",
            " / ".join(f"{case[f'{way}_trains_s']:.2f}" for way in WAYS) + " s",
            f"{case['mirror_redone']} / {case['checkpoint_redone']}",
            f"{case['mirror_step_s'] * 1000:.0f} / {case['checkpoint_step_s'] * 1000:.0f} ms",
        ]
        for case in document["cases"]
    ]
    headers = (
        *("case", "restart", "mirrors", "checkpoint", "restart/mirrors", "restart/checkpoint", "believed after"),
        "trains again after, mirrors / checkpoint",
        *("steps made again, mirrors / checkpoint", "a step with / without mirrors"),
    )
    where = document["machine"]
    summary = f"seconds lost, medians; {where['cores']} cores, {where['device']}; {document['seconds']:.0f} s in all"
    return "\n".join([tabulate(rows, headers, disable_numparse=True), summary])
