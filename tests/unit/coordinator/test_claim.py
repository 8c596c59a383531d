"""A coordinator of an earlier start of the job lets go of the run; all others do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from liver_slurm.coordinator.runtime.claim import Claim, Outdated
from liver_slurm.scheduler.ports import JobStart


def test_the_later_start_of_a_job_takes_over(tmp_path: Path) -> None:
    file = tmp_path / "claim.json"
    first, again = Claim(file, JobStart("7", 0)), Claim(file, JobStart("7", 0))
    first.make()
    again.make()  # a coordinator that was started again within the same start
    first.check()
    later = Claim(file, JobStart("7", 1))
    later.make()
    with pytest.raises(Outdated, match="job 7 was started again"):
        Claim(file, JobStart("7", 0)).check()
    with pytest.raises(Outdated):
        first.make()
    later.check()


def test_plain_processes_and_other_jobs_are_not_outdated(tmp_path: Path) -> None:
    file = tmp_path / "claim.json"
    Claim(file, JobStart("7", 3)).make()
    for start in (JobStart(), JobStart("8", 0)):
        Claim(file, start).check()
        Claim(file, start).make()
