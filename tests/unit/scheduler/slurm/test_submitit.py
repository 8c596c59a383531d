"""Our submitit executor without a cluster: what it asks for, how it reads states, and a task without entry points."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from submitit.core import plugins
from submitit.core.utils import DelayedSubmission, JobPaths, pickle_load

from liver_slurm.base.errors import ClusterError
from liver_slurm.plugins.submitit import __main__ as task
from liver_slurm.plugins.submitit import job as job_module
from liver_slurm.plugins.submitit.executor import LiverExecutor, completed
from liver_slurm.plugins.submitit.job import LiverInfoWatcher, find_job
from liver_slurm.scheduler.slurm.records import JobInfo


def script(folder: Path, monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> str:
    monkeypatch.setattr(LiverExecutor, "affinity", classmethod(lambda _: 1))  # whether or not srun is here
    executor = LiverExecutor(folder)
    executor.update_parameters(**parameters)
    return str(executor._make_submission_file_text(executor._submitit_command_str, "uid"))


def test_a_signal_only_for_those_who_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--signal" not in script(tmp_path, monkeypatch)
    assert "#SBATCH --signal=USR2@30\n" in script(tmp_path, monkeypatch, signal_delay_s=30)
    text = script(tmp_path, monkeypatch, additional_parameters={"signal": "TERM@60", "requeue": True})
    assert "#SBATCH --signal=TERM@60\n" in text
    assert text.index("--no-requeue") < text.index("--requeue"), "the later one wins"


def test_what_was_given_wins() -> None:
    given = {"cpus_per_task": 4, "srun_args": ["--cpus-per-task=2"], "additional_parameters": {"reservation": "r"}}
    assert completed(given)["srun_args"] == ["--cpus-per-task=4", "--cpus-per-task=2"]
    assert completed(given)["additional_parameters"] == {"no-requeue": True, "reservation": "r"}
    assert completed({})["srun_args"] == []


@given(st.sets(st.integers(0, 40)), st.integers(0, 40))
def test_tasks_that_share_a_record(pending: set[int], asked: int) -> None:
    rows = [_info(f"12_[{','.join(map(str, sorted(pending)))}%3]", "PENDING")] if pending else []
    rows += [_info(f"13_{asked}", "FAILED"), _info("12_41", "RUNNING")]
    found = find_job(rows, f"12_{asked}")
    assert (found.state if found else None) == ("PENDING" if asked in pending else None)
    own = find_job([*rows, _info(f"12_{asked}", "RUNNING")], f"12_{asked}")
    assert own is not None
    assert own.state == "RUNNING", "its own record comes first"


def test_an_array_as_a_whole_is_over_when_all_its_tasks_are() -> None:
    rows = [_info("12_0", "COMPLETED"), _info("12_[1-2]", "PENDING")]
    assert [found.state for found in (find_job(rows, "12"), find_job(rows[:1], "12")) if found] == [
        "PENDING",
        "COMPLETED",
    ]


def test_a_list_that_slurm_cut_short_may_mean_any_task() -> None:
    assert find_job([_info("12_[0-3,5,...]", "PENDING")], "12_77") is not None


def test_one_query_for_all_and_none_for_what_is_over(slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    class Client:
        def jobs(self, ids: list[str]) -> list[JobInfo]:
            asked.append(ids)
            if slurm.away:
                raise ClusterError("squeue: Unable to contact slurm controller")
            return [info for info in slurm.infos if info.job_id.partition("_")[0] in ids]

    monkeypatch.setattr(job_module, "connect", Client)
    watcher = LiverInfoWatcher(delay_s=15)
    for job_id in ("1", "2_0", "2_1", "3", "4"):
        watcher.register_job(job_id)
    slurm.infos = [
        _info("1", "RUNNING"),
        _info("2_[1]", "PENDING"),
        _info("2_0", "COMPLETED"),
        _info("3", "PREEMPTED"),
    ]
    states = [watcher.get_state(job_id) for job_id in ("1", "2_0", "2_1", "3", "4")]
    assert states == ["RUNNING", "COMPLETED", "PENDING", "PREEMPTED", "PURGED"]
    assert asked == [["1", "2", "3", "4"]]
    assert [watcher.is_done(job_id, "cache") for job_id in ("1", "2_0", "2_1", "3", "4")] == [False, True] * 2 + [True]
    slurm.away = True
    watcher._last_status_check = 0.0  # submitit asks no more often than once in a millisecond
    assert watcher.get_state("1", "force") == "RUNNING"
    assert asked[1] == ["1", "2"]


def test_a_task_where_no_entry_points_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_iter_submitit_entrypoints", list)
    for cached in (plugins._get_plugins, plugins.get_job_environments):
        cached.cache_clear()
    before = signal.getsignal(signal.SIGTERM)

    def own() -> tuple[str, Any]:
        from submitit import JobEnvironment

        return JobEnvironment().cluster, signal.getsignal(signal.SIGTERM) is before

    DelayedSubmission(own).dump(JobPaths(tmp_path, "7").submitted_pickle)
    for name, value in {"SLURM_JOB_ID": "7", "SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_FOLDER": ""}.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_PROCID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["submitit", str(tmp_path)])
    try:
        task.main()
    finally:
        for cached in (plugins._get_plugins, plugins.get_job_environments):
            cached.cache_clear()
    assert pickle_load(JobPaths(tmp_path, "7", 0).result_pickle) == ("success", ("liver", True))


def _info(job_id: str, state: str) -> JobInfo:
    return JobInfo(
        job_id=job_id,
        state=state,
        partition="scavenger",
        nodes=(),
        preempt_time=None,
        restarts=0,
        reason="",
        time_limit=None,
        end_time=None,
        name="own",
        comment="",
    )
