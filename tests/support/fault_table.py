"""The table of faults: role × fault × phase × optimizer, what is expected of each cell, and how one is tried."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import paced_samples
from coordinator_lab import until
from worker_lab import STARTUP, WorkerLab, job
from worker_nursery import Nursery

from liver_slurm.base.faults import Fault, Victim
from liver_slurm.chaos.agent import strike
from liver_slurm.config.schema import CheckpointSection, RecoverySection
from liver_slurm.protocol.messages import ResizeRequest
from liver_slurm.rundir.metrics import StepMetrics, read_metrics

ROLES = ("live worker", "joiner", "leaver", "coordinator", "node")
FAULTS = (Fault.KILL, Fault.STOP, Fault.FAIL, Fault.CUT, Fault.DELAY, Fault.DISK_FULL)
POINTS = {
    "steady": "step",
    "prepare": "prepare",
    "stream": "stream",
    "before commit": "first_step",
    "after commit": "commit",
    "retire": "retire",
    "checkpoint": "save",
}
"""Each phase, and the point of a worker's code that it is tried at."""
OPTIMIZERS = ("plain", "distributed", "mirrored")
"""The last is the distributed one, with mirrors of what no other rank holds."""

AFTER, STEADY, EVERY = 4, 12, 4
"""Steps that must be trained after the fault; step of the fault in phase steady; steps between two checkpoints, which
the shards of a distributed optimizer come from."""
LATE, BRIEF, HELD = 1.0, 2.0, 3.0
"""Seconds: of a delay; that a coordinator stands still or has no disk; that a worker is held for it to be struck."""
LOST_AFTER, STEP = 6.0, 0.1


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    role: str
    fault: Fault
    phase: str
    optimizer: str

    def __str__(self) -> str:
        return f"{self.role}-{self.fault.value}-{self.phase}-{self.optimizer}".replace(" ", "_")

    @property
    def never(self) -> str:
        """Why there is no such cell; empty: there is."""
        if self.role == "coordinator" and self.fault is Fault.FAIL:
            return "a coordinator has no points of its own; one that breaks down is as one that is killed"
        if self.role in ("joiner", "node") and self.phase in ("steady", "checkpoint"):
            return "before the commit it is in no world, after it it is a live worker"
        if self.role == "leaver" and self.phase in ("steady", "checkpoint"):
            return "before its notice it is a live worker"
        if self.role == "leaver" and self.phase == "before commit":
            return "it has no first step in the new world"
        if self.role == "joiner" and self.phase == "retire":
            return "it has no old world"
        return "a node's workers retire nothing" if (self.role, self.phase) == ("node", "retire") else ""

    @property
    def loses_no_step(self) -> bool:
        """Whether what survives holds all state: at most the step that was under way is made again."""
        return self.optimizer != "distributed" and self.role != "node"


def cells() -> Iterator[Cell]:
    """Yield all cells that there are."""
    for role, fault, phase, optimizer in itertools.product(ROLES, FAULTS, POINTS, OPTIMIZERS):
        cell = Cell(role, fault, phase, optimizer)
        if not cell.never:
            yield cell


@dataclass(frozen=True)
class Result:
    """What became of a run."""

    detected_s: float | None
    """Seconds from the fault to the first event that speaks of it; None: none did."""
    trained_s: float | None
    """Seconds from the fault to the end of the first step that began after it; None: there was none."""
    steps_lost: int
    """Steps that were trained and had to be trained again."""
    ended: str
    """How the run ended; empty: it goes on."""


class NurseryLab(WorkerLab):
    """A run whose workers come from a nursery."""

    def __init__(self, folder: Path, nursery: Nursery, optimizer: str, steps: int = 100_000) -> None:
        config = job(folder, steps=steps, checkpoint=CheckpointSection(every=EVERY, at_end=False))
        super().__init__(
            replace(
                config,
                job=replace(config.job, heartbeat=0.2, lost_after=LOST_AFTER),
                train=replace(config.train, distributed_optimizer=optimizer != "plain"),
                recovery=RecoverySection(mirror="on" if optimizer == "mirrored" else "off"),
                elastic=replace(config.elastic, settle=1.0),
            )
        )
        self._nursery = nursery

    def real_worker(self, name: str, fault: str = "") -> Any:
        """See :class:`WorkerLab`; ``fault`` has no name of a worker in it."""
        action, _, seconds = fault.partition(":")
        value = f"{action}:{name}{':' if seconds else ''}{seconds}" if fault else ""
        worker: Any = self._nursery.start(self.run_dir.path, name, {"LIVER_FAULT": value})
        self.processes[name] = worker
        return worker

    def log_has(self, name: str, text: str) -> bool:
        """Whether a worker has logged a line with this text."""
        path = self.run_dir.worker_log(name)
        return path.exists() and text in path.read_text(errors="replace")

    def steps(self) -> list[StepMetrics]:
        """All steps so far."""
        return list(read_metrics(self.run_dir.metrics))


def try_cell(cell: Cell, lab: NurseryLab) -> Result:
    """Do a cell's fault to a run, and see what becomes of it; the run is left as it is then."""
    paced_samples.pace(lab.config.job.run_root, STEP)
    at, step = _begin(cell, lab)
    until(lambda: _ended(lab) or _trained(lab, at) >= AFTER, f"{cell}: trained again, or over", STARTUP)
    return _result(lab, at, step)


def _begin(cell: Cell, lab: NurseryLab) -> tuple[float, int]:
    """Bring a run into a phase and do the fault; returns when, seconds since the epoch, and the last step then."""
    point = POINTS[cell.phase]
    inside = cell.role != "coordinator"
    # The first world is prepared, too, and is not meant; a step is one of a run that has a checkpoint.
    after = {"prepare": "+1", "step": f"+{STEADY}", "save": "+1"}.get(point, "")
    seconds = {Fault.DELAY: f":{LATE}"}.get(cell.fault, "")
    fault = f"{cell.fault.value}@{point}{after}{seconds}" if inside else f"delay@{point}{after}:{HELD}"
    lab.coordinator()
    lab.real_worker("live-0", fault if cell.role == "coordinator" else "")
    lab.real_worker("live-1", fault if cell.role in ("live worker", "leaver") else "")
    lab.committed_to("tp1pp1dp2")
    lab.wait_event("checkpoint_written", timeout=STARTUP)
    own = fault.replace("+1", "") if point == "prepare" else fault
    if cell.role == "leaver":
        assert lab.ask(ResizeRequest(workers=1)).ok
    elif cell.phase not in ("steady", "checkpoint"):
        for name in ("standby-a", "standby-b")[: 2 if cell.role == "node" else 1]:
            lab.real_worker(name, own if cell.role in ("joiner", "node") else "")
    struck = {"live worker": ["live-1"], "leaver": ["live-1"], "joiner": ["standby-a"], "coordinator": ["live-0"]}
    names = struck.get(cell.role, ["standby-a", "standby-b"])
    word = cell.fault.value if inside else "delay"
    for name in names:
        until(
            lambda name=name: lab.log_has(name, f"{name} at {point}: {word}") or _ended(lab), f"{cell}: struck", STARTUP
        )
    at, step = time.time(), lab.steps()[-1].step
    if not inside:
        _strike_coordinator(lab, cell.fault)
    return at, step


def _strike_coordinator(lab: NurseryLab, fault: Fault) -> None:
    """Strike from outside; one that was killed is started again, as its launcher does."""
    process = lab.processes["coordinator"]
    victim = Victim(process.pid)
    _, undo = strike(victim, fault)
    if fault in (Fault.STOP, Fault.DELAY, Fault.DISK_FULL):
        time.sleep(BRIEF if fault is not Fault.DELAY else LATE)  # how long it lasts
        undo()
    victim.close()
    if fault is Fault.KILL:
        process.wait()
    if process.poll() is not None:
        lab.coordinator()


def _trained(lab: NurseryLab, at: float) -> int:
    return sum(step.start > at for step in lab.steps())


def _ended(lab: NurseryLab) -> str:
    events = lab.events("run_ended")
    return str(events[0]["reason"]) if events else ""


SPEAKS = (
    "worker_lost", "reconfiguration_aborted", "checkpoint_failed", "coordinator_started", "recovery_planned",
)  # fmt: skip
"""Events that speak of a fault."""


def _result(lab: NurseryLab, at: float, step: int) -> Result:
    spoken = [event["time"] for name in SPEAKS for event in lab.events(name) if event["time"] > at]
    after = [step.end for step in lab.steps() if step.start > at]
    again = [event["step"] for event in lab.events("recovery_planned") if event["time"] > at]
    lost = max((step - one for one in again), default=0)
    return Result(
        detected_s=min(spoken) - at if spoken else None,
        trained_s=min(after) - at if after else None,
        steps_lost=max(lost, 0),
        ended=_ended(lab),
    )
