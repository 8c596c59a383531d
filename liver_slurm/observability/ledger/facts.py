"""Facts of a run for its ledger: what its files say, and until when they say it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from liver_slurm.config.layouts import live_workers
from liver_slurm.config.load import read_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.units import most_workers
from liver_slurm.observability.ledger.clocks import never_back
from liver_slurm.observability.ledger.step_table import StepTable, read_steps
from liver_slurm.rundir.event_log import is_moment, read_events
from liver_slurm.rundir.events import (
    CoordinatorStarted,
    Event,
    HandedOver,
    Interrupted,
    RunEnded,
    UnknownEvent,
)
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import RunInfo, read_run_info
from liver_slurm.rundir.validation import ValidationMetrics, read_validations


@dataclass(frozen=True)
class Job:
    """What the job file says that a ledger needs."""

    guaranteed: int
    """Devices of the guaranteed job."""
    most_standbys: int
    """Devices that standby jobs bring at most."""
    most: int
    """Devices that the run may have at most."""
    partitions: tuple[str, ...]
    """Of each guaranteed worker, by its number; empty: the cluster's default, or no Slurm."""
    standby_partition: str
    """Of all standby jobs, if there is only one; else empty."""
    on_slurm: bool
    steps: int


@dataclass(frozen=True)
class Facts:
    """All that a ledger is folded from. Times are seconds since the epoch."""

    run: str
    """Path of the run directory."""
    resumed_from: str
    created: float
    until: float
    """Where the ledger ends: the run's last sign of life, or now, where the run waits in the queue."""
    outcome: str
    """How the run ended; ``queued`` or ``training`` of one that has not."""
    job: Job
    events: tuple[Event | UnknownEvent, ...]
    """In the order of the file; their times never go back."""
    steps: StepTable
    validations: tuple[ValidationMetrics, ...] = ()
    counted: int | None = None
    """Steps that count, where another run goes on from a checkpoint of this one; None: all."""


def read_facts(run_dir: RunDir, now: float) -> Facts:
    """Read a run's files.

    Args:
        run_dir: may be of an older version, of a run in progress, or of one that was killed.
        now: seconds since the epoch.

    Raises:
        BadInput: it is no run directory.
    """
    info = read_run_info(run_dir)
    config = read_job(run_dir.job_file)
    return make_facts(run_dir, info, make_job(config, info), tuple(read_events(run_dir.events)), now)


def make_facts(run_dir: RunDir, info: RunInfo, job: Job, events: tuple[Event | UnknownEvent, ...], now: float) -> Facts:
    """Make facts of what was read; reads steps and validations."""
    steps = read_steps(run_dir.metrics)
    validations = tuple(read_validations(run_dir.validations))
    ordered = in_order(events, info.created)
    outcome = how_it_stands(ordered)
    last = max(
        info.created,
        ordered[-1].time if ordered else info.created,
        float(steps.end[-1]) if len(steps) else info.created,
        *(one.end for one in validations if is_moment(one.end)),
    )
    return Facts(
        run=str(run_dir.path),
        resumed_from=info.resumed_from,
        created=info.created,
        until=max(last, now) if outcome == "queued" else last,
        outcome=outcome,
        job=job,
        events=ordered,
        steps=steps,
        validations=validations,
    )


def make_job(config: JobConfig, info: RunInfo) -> Job:
    """Take what a ledger needs out of a job file."""
    guaranteed = live_workers(config.live)
    standbys = most_workers(config.standby)
    most = guaranteed + standbys
    if config.elastic.max_workers is not None:
        most = min(most, max(guaranteed, config.elastic.max_workers))
    partitions = {*config.standby.partitions, *(name for unit in config.standby.unit for name in unit.partitions or ())}
    return Job(
        guaranteed=guaranteed,
        most_standbys=standbys,
        most=most,
        partitions=tuple(
            component.partition or config.live.partition or ""
            for component in config.live.component
            for _ in range(component.nodes * component.tasks_per_node)
        ),
        standby_partition=partitions.pop() if len(partitions) == 1 else "",
        on_slurm=bool(info.job_id),
        steps=config.train.steps,
    )


def in_order(events: tuple[Event | UnknownEvent, ...], first: float) -> tuple[Event | UnknownEvent, ...]:
    """Return the events with times that never go back: coordinators on several hosts have several clocks."""
    times = np.maximum(never_back(np.array([event.time for event in events], dtype=np.float64)), first).tolist()
    return tuple(
        event if event.time == time else msgspec.structs.replace(event, time=time)
        for event, time in zip(events, times, strict=True)
    )


def how_it_stands(events: tuple[Event | UnknownEvent, ...]) -> str:
    """Say how the run ended, ``queued`` while no coordinator of it has started (again), else ``training``."""
    outcome = "queued"
    for event in events:
        if isinstance(event, RunEnded):
            outcome = event.outcome
        elif isinstance(event, Interrupted):
            outcome = "queued"
        elif isinstance(event, CoordinatorStarted | HandedOver):
            outcome = "training"
    return outcome


def linked(runs: list[Facts]) -> list[Facts]:
    """Return runs that are looked at together: what one trained after the checkpoint that another took is lost.

    Of a run that is not among them nothing is known: no run is told who has resumed it.
    """
    resumed: dict[str, int] = {}
    for run in runs:
        if run.resumed_from and len(run.steps):
            first, before = int(run.steps.step[0]) - 1, os.path.realpath(run.resumed_from)
            resumed[before] = min(first, resumed.get(before, first))
    return [replace(run, counted=resumed.get(os.path.realpath(run.run))) for run in runs]
