"""Whether a run has ended, by its own word."""

from __future__ import annotations

from liver_slurm.rundir.event_log import read_events
from liver_slurm.rundir.events import CoordinatorStarted, RunEnded
from liver_slurm.rundir.paths import RunDir


def is_over(run_dir: RunDir) -> bool:
    """Return whether the event log ends with the run's end; a job that is started again goes on with it."""
    over = False
    for event in read_events(run_dir.events):
        if isinstance(event, RunEnded | CoordinatorStarted):
            over = isinstance(event, RunEnded)
    return over
