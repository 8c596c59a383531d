"""What Slurm's record says of a job whose processes were told to end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from liver_slurm.scheduler.slurm.job_fate import judge
from liver_slurm.scheduler.slurm.records import JobInfo

JOB = JobInfo(
    job_id="7+0", state="RUNNING", partition="live", nodes=("n1",), preempt_time=None, restarts=1, reason="",
    time_limit=None, end_time=None, name="x", comment="",
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "fate"),
    [
        ({}, "running"),
        ({"preempt_time": 5.0}, "preempted"),
        ({"preempt_time": 5.0, "state": "SIGNALING"}, "preempted"),
        ({"state": "SIGNALING"}, "running"),
        ({"state": "COMPLETING", "restarts": 2}, "requeued"),
        ({"state": "PENDING", "restarts": 2}, "requeued"),
        ({"state": "RUNNING", "restarts": 2}, "requeued"),
        ({"state": "COMPLETING"}, "over"),
        ({"state": "CANCELLED", "restarts": 2}, "over"),
    ],
)
def test_fate(changes: dict[str, object], fate: str) -> None:
    component = replace(JOB, job_id="7+1", nodes=("n2",))
    assert judge([component, replace(JOB, **changes)], "7", 1)[0] == fate  # type: ignore[arg-type]


def test_a_job_is_preempted_as_a_whole() -> None:
    assert judge([JOB, replace(JOB, job_id="7+1", preempt_time=5.0)], "7", 1)[0] == "preempted"


def test_a_task_of_a_job_array_knows_itself_by_its_number() -> None:
    task = replace(JOB, job_id="7_3", number=12, state="PENDING", restarts=2)
    assert judge([replace(JOB, job_id="7_2", number=11, restarts=0), task], "12", 1)[0] == "requeued"


def test_a_job_that_slurm_has_forgotten_is_over() -> None:
    assert judge([], "7", 0)[0] == "over"
