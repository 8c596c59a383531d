"""The sizes that standby jobs may have, and how long before their time limit they are warned. Pure."""

from __future__ import annotations

import dataclasses
import math

from liver_slurm.config.schema import StandbySection

WARNING = 30.0
"""Seconds before its time limit that a standby job is warned, unless ``standby.signal`` or ``standby.grace`` says."""


def standby_units(standby: StandbySection) -> tuple[StandbySection, ...]:
    """Make one section for each size of standby job; ``[standby]`` itself where a job file lists no units."""
    if not standby.unit:
        return (standby,)
    return tuple(
        dataclasses.replace(standby, unit=(), **{key: value for key, value in vars(unit).items() if value is not None})
        for unit in standby.unit
    )


def workers_per_job(unit: StandbySection) -> int:
    """Count the workers of one standby job."""
    return unit.nodes_per_job * unit.tasks_per_node


def most_workers(standby: StandbySection) -> int:
    """Count the workers that all standby jobs together can bring."""
    workers, jobs = 0, standby.max_jobs
    for unit in sorted(standby_units(standby), key=workers_per_job, reverse=True):
        taken = min(unit.max_jobs, jobs)
        workers, jobs = workers + taken * workers_per_job(unit), jobs - taken
    return workers


def warning_seconds(standby: StandbySection) -> float:
    """Return how long before its time limit a standby job is warned."""
    if standby.signal is not None:
        _, at, seconds = standby.signal.partition("@")
        return float(seconds) if at else 60.0  # Slurm's own default
    return float(max(1, math.ceil(standby.grace if standby.grace is not None else WARNING)))
