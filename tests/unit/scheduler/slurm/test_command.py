"""Running commands: time-outs, retries, messages, and the environment outside of a job."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest

from liver_slurm.base.errors import ClusterError
from liver_slurm.scheduler.slurm import command
from liver_slurm.scheduler.slurm.command import NotAnswering, NotInstalled, outside_environment, retried, run_once


def test_output() -> None:
    assert run_once([sys.executable, "-c", "print('yes')"], 30) == "yes\n"


def test_time_out() -> None:
    start = time.monotonic()
    with pytest.raises(NotAnswering, match=r"did not answer within 0\.2 s"):
        run_once(["sleep", "30"], 0.2)
    assert time.monotonic() - start < 10


def test_missing_program_names_the_way_out() -> None:
    with pytest.raises(NotInstalled, match=r"no nosuchctl on this machine: apt-get install .* slurmctld"):
        run_once(["nosuchctl"], 5)


def script(path: Path, text: str) -> list[str]:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return [str(path)]


def test_refusal(tmp_path: Path) -> None:
    argv = script(tmp_path / "sbatch", 'echo "sbatch: error: invalid partition specified: x" >&2; exit 1')
    with pytest.raises(ClusterError, match=r"^sbatch: invalid partition specified: x$") as caught:
        run_once(argv, 30)
    assert not isinstance(caught.value, NotAnswering)


@pytest.mark.parametrize(
    "said",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        # 24.11, of a slurmctld that ended while it was asked
        "slurm_load_partitions: Connection reset by peer",
    ],
)
def test_controller_away(tmp_path: Path, said: str) -> None:
    argv = script(tmp_path / "squeue", f'echo "{said}" >&2; exit 1')
    with pytest.raises(NotAnswering, match=re.escape(said)):
        run_once(argv, 30)


def test_retried_until_it_answers() -> None:
    answers = iter([NotAnswering("away"), NotAnswering("away"), "here"])
    pauses: list[float] = []

    def attempt() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retried(attempt, sleep=pauses.append) == "here"
    assert pauses == [command.FIRST_DELAY, 2 * command.FIRST_DELAY]


def test_retries_are_bounded() -> None:
    tries: list[int] = []

    def attempt() -> None:
        tries.append(1)
        raise NotAnswering("away")

    with pytest.raises(NotAnswering):
        retried(attempt, attempts=3, sleep=lambda _: None)
    assert len(tries) == 3


def test_refusals_are_not_retried() -> None:
    tries: list[int] = []

    def attempt() -> None:
        tries.append(1)
        raise ClusterError("no")

    with pytest.raises(ClusterError):
        retried(attempt, sleep=lambda _: None)
    assert len(tries) == 1


def test_environment_outside_of_a_job() -> None:
    inside = {
        "PATH": "/bin",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_JOB_ID": "7",
        "SLURM_MEM_PER_NODE": "2048",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURMD_NODENAME": "n1",
        "SRUN_CPUS_PER_TASK": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "SBATCH_ACCOUNT": "lab",
    }
    assert outside_environment(inside) == {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "lab"}


def test_options_in_the_environment_of_a_login_shell_are_not_handed_on() -> None:
    login = {
        "CUDA_VISIBLE_DEVICES": "0", "SLURM_CONF": "x", "SLURM_JWT": "token", "SLURM_TIMELIMIT": "1", "SLURM_GPUS": "8",
        "SBATCH_PARTITION": "scavenger", "SBATCH_TIMELIMIT": "1:00", "SBATCH_MEM_PER_NODE": "100M",
        "SINFO_FORMAT": "%N", "SBATCH_JOB_NAME": "mine", "SQUEUE_PARTITION": "live", "SCANCEL_INTERACTIVE": "1",
        "SRUN_CPUS_PER_TASK": "2",
    }  # fmt: skip
    assert outside_environment(login) == {"CUDA_VISIBLE_DEVICES": "0", "SLURM_CONF": "x", "SLURM_JWT": "token"}


def test_what_the_job_file_has_no_word_for_stays() -> None:
    login = {"SBATCH_ACCOUNT": "lab", "SBATCH_RESERVATION": "course", "SBATCH_QOS": "high"}
    assert outside_environment(login) == login
    assert outside_environment(login, said=("account", "qos")) == {"SBATCH_RESERVATION": "course"}


def test_a_configuration_that_is_not_there_is_said_at_once() -> None:
    with pytest.raises(ClusterError, match="SLURM_CONF names /nonexistent"):
        run_once(["true"], 5, {"SLURM_CONF": "/nonexistent", "PATH": os.environ["PATH"]})
