"""What the coordinator is told about standby jobs, and what is asked for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import ClusterError
from liver_slurm.config.schema import JobConfig, StandbySection
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.ports import LaunchStopped
from liver_slurm.scheduler.slurm import standby
from liver_slurm.scheduler.slurm.records import JobInfo, NodeInfo
from liver_slurm.scheduler.slurm.standby import SlurmStandbys, standby_job_name, submitit_parameters
from liver_slurm.worker.bootstrap import standby_main

RUN_DIR = RunDir(Path("/runs/gpt-20260102-030405-abcd"))
NAME = "gpt-20260102-030405-abcd-standby"


def config(**options: Any) -> JobConfig:
    return JobConfig(standby=StandbySection(**{"partitions": ("a", "b"), "max_jobs": 4, **options}))


def test_observe(slurm: Any, make_node: Callable[..., NodeInfo], make_job: Callable[..., JobInfo]) -> None:
    slurm.add_partition("a", [make_node("n1"), make_node("n2", state="allocated", cpus_idle=0)])
    slurm.add_partition("b", [make_node("n1"), make_node("n3")])
    mark = {"name": NAME, "comment": str(RUN_DIR.path)}
    slurm.infos = [
        make_job("1", **mark),
        make_job("2", "PENDING", nodes=(), **mark),
        make_job("3", "COMPLETED", **mark),
        make_job("4", name=NAME, comment="/other/gpt-20260102-030405-abcd"),
    ]
    source = SlurmStandbys(config(cpus_per_task=2), RUN_DIR, slurm, standby_main, clock=lambda: 5.0)
    capacity = source.observe()
    assert [job.job_id for job in capacity.jobs] == ["1", "2"]
    assert [(place.partition, place.jobs) for place in capacity.room] == [("a", 2), ("b", 2)], "n1 counts once"
    assert (capacity.time, capacity.blind) == (5.0, None)

    slurm.away = True
    blind = source.observe()
    assert blind.blind == "squeue: Unable to contact slurm controller"
    assert (blind.jobs, blind.room, blind.time) == (capacity.jobs, capacity.room, capacity.time)
    slurm.away = False
    assert source.observe() == capacity

    source.close()
    assert slurm.cancelled == ["1", "2"]


def test_the_name_is_one_name() -> None:
    assert standby_job_name(RunDir(Path("/runs/a, b"))) == "a__b-standby"


def test_a_look_asks_one_thing_more_at_most_than_what_is_there(
    slurm: Any, make_node: Callable[..., NodeInfo], make_job: Callable[..., JobInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    slurm.add_partition("a", [make_node("n1")])
    slurm.add_partition("b", [])
    asked: list[str] = []
    for name in ("reservations", "config", "partitions"):
        answer = getattr(slurm, name)
        monkeypatch.setattr(slurm, name, lambda answer=answer, name=name: (asked.append(name), answer())[1])
    source = SlurmStandbys(config(), RUN_DIR, slurm, standby_main, clock=lambda: now)
    mark = {"name": NAME, "comment": str(RUN_DIR.path)}

    def look(seconds: float) -> list[str]:
        nonlocal now
        now += seconds
        asked.clear()
        source.observe()
        return sorted(asked)

    assert look(0.0) == ["config", "partitions", "reservations"]
    slurm.infos = [make_job("1", "PENDING", nodes=(), **mark)]
    assert look(1.0) == []
    slurm.infos = [make_job("1", **mark)]
    assert look(1.0) == ["partitions"], "a job runs on the terms of now"
    assert look(1.0) == []
    assert look(16.0) == ["reservations"]
    for number in range(2, 8):  # a job begins between any two looks
        slurm.infos.append(make_job(str(number), **mark))
        assert look(20.0) == [("partitions", "reservations")[number % 2]], "in turns"
    assert look(1.0) == ["partitions"], "what is due and was not asked for is, although none has begun since"
    slurm.infos.append(make_job("8", **mark))
    assert look(300.0) == ["reservations"]
    assert look(1.0) == ["config"]
    assert look(1.0) == ["partitions"]


# ---- which jobs are ours -------------------------------------------------------------------------------------------


def source_that_launches(
    slurm: Any, make_node: Callable[..., NodeInfo], monkeypatch: pytest.MonkeyPatch, now: list[float], **options: Any
) -> SlurmStandbys:
    slurm.add_partition("a", [make_node("n1")])
    slurm.add_partition("b", [])
    monkeypatch.setattr(standby, "launch", lambda request: [str(77 + number) for number in range(request.count)])
    return SlurmStandbys(config(), RUN_DIR, slurm, standby_main, clock=lambda: now[0], **options)


def test_a_job_that_slurm_does_not_show_yet_counts_as_pending(
    slurm: Any, make_node: Callable[..., NodeInfo], make_job: Callable[..., JobInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    source = source_that_launches(slurm, make_node, monkeypatch, now)
    assert source.launch(1, 0, "a") == ["77"]
    seen = [(job.job_id, job.state, job.partition) for job in source.observe().jobs]
    assert seen == [("77", "pending", "a")], "or another would be submitted at each look"
    now[0] += standby.UNSEEN + 1
    assert source.observe().jobs == (), "it came and went"


@pytest.mark.parametrize("marks", [{"comment": "by the site"}, {"name": "mine", "comment": ""}])
def test_a_job_is_ours_by_its_id_and_not_its_comment(
    slurm: Any, make_node: Callable[..., NodeInfo], make_job: Callable[..., JobInfo], monkeypatch: pytest.MonkeyPatch,
    marks: dict[str, str],
) -> None:  # fmt: skip
    now = [1000.0]
    source = source_that_launches(slurm, make_node, monkeypatch, now)
    source.launch(1, 0, "a")
    slurm.infos = [make_job("77", **{"name": NAME, **marks}), make_job("78", name="another's", comment="x")]
    assert [(job.job_id, job.state) for job in source.observe().jobs] == [("77", "running")]
    next_one = source_that_launches(slurm, make_node, monkeypatch, now, launched={"77": 0, "5": 0})
    assert [job.job_id for job in next_one.observe().jobs] == ["77"], "also for a coordinator that takes over"
    slurm.infos = []
    assert source.observe().jobs == (), "Slurm has shown it, and knows it no longer"
    slurm.infos = [make_job("77", **{"name": NAME, **marks})]
    next_one.close()
    assert slurm.cancelled == ["77"]


def test_what_was_submitted_before_a_refusal_is_ours(
    slurm: Any, make_node: Callable[..., NodeInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_that_launches(slurm, make_node, monkeypatch, [1000.0])

    def refused(request: Any) -> list[str]:
        raise LaunchStopped(["77", "78"], "no more")

    monkeypatch.setattr(standby, "launch", refused)
    with pytest.raises(LaunchStopped, match="no more"):
        source.launch(3, 0, "a")
    assert [job.job_id for job in source.observe().jobs] == ["77", "78"]
    source.close()
    assert slurm.cancelled == ["77", "78"], "although Slurm does not show them yet"


def test_anothers_job_with_the_number_of_one_of_ours_is_not_ours(
    slurm: Any, make_node: Callable[..., NodeInfo], make_job: Callable[..., JobInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.infos = [make_job("77", name="another's", number=77)]
    slurm.of_others = {77}
    source = source_that_launches(slurm, make_node, monkeypatch, [1000.0], launched={"77": 0})
    assert source.observe().jobs == ()


@pytest.mark.parametrize(
    ("state", "preempted", "how"),
    [("FAILED", None, "ended"), ("CANCELLED", None, "taken"), ("PREEMPTED", 9.0, "taken"), ("COMPLETED", 9.0, "taken")],
)
def test_a_job_that_is_over_ended_by_itself_or_did_not(
    slurm: Any, make_node: Callable[..., NodeInfo], make_job: Callable[..., JobInfo], monkeypatch: pytest.MonkeyPatch,
    state: str, preempted: float | None, how: str,
) -> None:  # fmt: skip
    source = source_that_launches(slurm, make_node, monkeypatch, [1000.0])
    source.launch(1, 0, "a")
    slurm.infos = [make_job("77", state, name=NAME, comment=str(RUN_DIR.path), preempt_time=preempted)]
    seen = source.observe()
    assert (seen.jobs, seen.over) == ((), {"77": how})


def test_what_there_is_no_key_for_is_asked_for_each_standby_job() -> None:
    wanted = StandbySection(sbatch=("--reservation=night", "--exclusive"), gpus_per_task=1, gpu_type="h100")
    asked = submitit_parameters(JobConfig(standby=wanted), wanted, "x-standby", "/runs/x", "scavenger")
    assert asked["gres"] == "gpu:h100:1"
    assert asked["additional_parameters"]["reservation"] == "night"
    assert asked["additional_parameters"]["exclusive"] is True


def test_jobs_in_the_queue_stay_there_for_whole_seconds(slurm: Any) -> None:
    SlurmStandbys(config(), RUN_DIR, slurm, standby_main).defer([str(number) for number in range(10)], 2.5)
    assert {name: wanted["StartTime"] for name, wanted in slurm.updated} == dict.fromkeys(
        ["0,8", "1,9", "2", "3", "4", "5", "6", "7"], "now+3"
    )


def test_a_refused_order_does_not_keep_the_others_back(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def update_job(job_id: str, changes: Mapping[str, str]) -> None:
        told.append(job_id)
        if job_id == "0":
            raise ClusterError("job is not pending")

    monkeypatch.setattr(slurm, "update_job", update_job)
    with pytest.raises(ClusterError, match="not pending"):
        SlurmStandbys(config(), RUN_DIR, slurm, standby_main).defer(["0", "1", "2"], 3.0)
    assert sorted(told) == ["0", "1", "2"]


def test_a_job_that_is_to_stay_in_the_queue_says_so() -> None:
    wanted = StandbySection()
    asked = submitit_parameters(JobConfig(standby=wanted), wanted, "x-standby", "/runs/x", "scavenger", 2.2)
    assert asked["additional_parameters"]["begin"] == "now+3"
