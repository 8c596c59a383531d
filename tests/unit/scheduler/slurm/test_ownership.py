"""All jobs of a run are found and ended, those of another are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.ownership import end_jobs_of_run
from liver_slurm.scheduler.slurm.parsing import WIDTH
from liver_slurm.scheduler.slurm.records import JobInfo
from liver_slurm.scheduler.slurm.standby import carries_mark, standby_job_name

RUN, OTHER = RunDir(Path("/runs/x-1")), RunDir(Path("/runs/x-2"))
LIVE = JobInfo(
    job_id="7+0", state="RUNNING", partition="live", nodes=("n1",), preempt_time=None, restarts=0, reason="",
    time_limit=None, end_time=None, name="x", comment="/runs/x-1",
)  # fmt: skip


class Slurm:
    """Names are asked for as squeue takes them; what is cancelled is completing, then over at the next look."""

    def __init__(self, *infos: JobInfo, stubborn: bool = False) -> None:
        self.infos, self.stubborn = list(infos), stubborn
        self.cancelled: list[str] = []

    def jobs(self, ids: Sequence[str] = (), names: Sequence[str] = ()) -> list[JobInfo]:
        found = [job for job in self.infos if job.name in names or job.leader in ids]
        after = {"COMPLETING": "CANCELLED"}
        self.infos = [replace(job, state=after.get(job.state, job.state)) for job in self.infos]
        return found

    def cancel(self, ids: Sequence[str]) -> None:
        self.cancelled += ids
        if not self.stubborn:
            self.infos = [replace(job, state="COMPLETING") if job.leader in ids else job for job in self.infos]


def test_a_job_that_is_submitted_meanwhile_ends_too() -> None:
    standby = replace(LIVE, job_id="9", name=standby_job_name(RUN), comment="/runs/x-1 unit=1", state="PENDING")
    slurm: Any = Slurm(LIVE, replace(LIVE, job_id="7+1"), replace(LIVE, job_id="8", comment="/runs/x-2"))

    def late(_seconds: float) -> None:
        if standby not in slurm.infos and "9" not in slurm.cancelled:
            slurm.infos.append(standby)

    ended, left = end_jobs_of_run(slurm, RUN, "x", sleep=late)
    assert (ended, left, slurm.cancelled) == (["7", "9"], [], ["7", "9"])
    assert [job.job_id for job in slurm.infos if not job.is_over] == ["8"]


def test_the_recorded_job_is_ended_whatever_its_name_is() -> None:
    slurm: Any = Slurm(replace(LIVE, name="y", comment="mine"))
    assert end_jobs_of_run(slurm, RUN, "x", "7", sleep=lambda _seconds: None) == (["7"], [])


def test_what_does_not_end_in_time_is_said() -> None:
    clock = iter(range(1000))
    slurm: Any = Slurm(LIVE, stubborn=True)
    assert end_jobs_of_run(slurm, RUN, "x", "7", 5.0, lambda: next(clock), lambda _seconds: None) == (["7"], ["7"])


def test_the_mark_of_a_long_path() -> None:
    long = RunDir(Path("/" + "r" * 2 * WIDTH))
    assert carries_mark(replace(LIVE, comment=str(long.path)[:WIDTH]), long)
    assert not carries_mark(replace(LIVE, comment=str(long.path)[:50]), long)
    assert not carries_mark(LIVE, OTHER)
