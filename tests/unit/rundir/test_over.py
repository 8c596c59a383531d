"""When a run is over."""

from __future__ import annotations

from pathlib import Path

from liver_slurm.config.schema import JobConfig, JobSection
from liver_slurm.rundir.event_log import EventLog
from liver_slurm.rundir.events import CoordinatorStarted, RunEnded
from liver_slurm.rundir.over import is_over
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run

ENDED = RunEnded(outcome="failed", exit_code=1, reason="so", step=3)
STARTED = CoordinatorStarted(epoch=1, host="here")


def test_a_run_is_over_by_its_log(tmp_path: Path) -> None:
    path = create_run(JobConfig(job=JobSection(run_root=str(tmp_path)))).events
    log = EventLog(path)
    for event, over in ((STARTED, False), (ENDED, True), (STARTED, False), (ENDED, True)):
        log.append(event)
        assert is_over(RunDir(path.parent)) is over
    log.close()
