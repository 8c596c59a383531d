"""The guaranteed job's script: golden files, and that bash and shellcheck have nothing to say about any of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import ComponentSection, JobConfig, JobSection, LiveSection
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.batch import render_script
from liver_slurm.scheduler.slurm.submit import Submission

RUN_DIR = RunDir(Path("/shared/runs/liver-20260102-030405-abcd"))
PYTHON = "/opt/liver/bin/python"

CASES = {
    "live-minimal": JobConfig(),
    "live-gpu": JobConfig(
        job=JobSection(name="gpt 70b's"),
        live=LiveSection(
            partition="gpu",
            coordinator_partition="cpu",
            time="2-00:00:00",
            account="lab",
            qos="high",
            setup=("module load cuda/12.4", 'export NCCL_SOCKET_IFNAME="ib0"'),
            component=(
                ComponentSection(
                    nodes=4, tasks_per_node=8, cpus_per_task=12, gpus_per_task=1, mem="900G", constraint="h100&ib"
                ),
            ),
        ),
    ),
    "live-two-components": JobConfig(
        live=LiveSection(
            partition="live",
            time="1:00:00",
            component=(
                ComponentSection(nodes=2, tasks_per_node=2, gpus_per_task=1, exclude="n[7-8]"),
                ComponentSection(nodes=1, cpus_per_task=3, partition="prod"),
            ),
        )
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"{name}.sh", render_script(CASES[name], RUN_DIR, PYTHON))


@pytest.mark.parametrize("name", CASES)
def test_bash_can_parse_it(name: str) -> None:
    script = render_script(CASES[name], RUN_DIR, PYTHON)
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", CASES)
def test_shellcheck_finds_nothing(name: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck on this machine; `make setup` installs it")
    script = render_script(CASES[name], RUN_DIR, PYTHON)
    done = subprocess.run(
        ["shellcheck", "--shell=bash", "-"], input=script, text=True, capture_output=True, check=False, timeout=60
    )
    assert done.stdout == ""


def test_a_run_directory_with_a_space_is_quoted_everywhere() -> None:
    script = render_script(JobConfig(), RunDir(Path("/my runs/a")), PYTHON)
    assert "#SBATCH --output='/my runs/a/logs/slurm-%j.out'" in script
    assert "export RUN_DIR='/my runs/a'" in script


def test_slurm_may_take_nodes_back_from_a_component() -> None:
    """From 24.11 on «Job is no longer pending execution» is what a job with ntasks-per-node gets to hear."""
    header = [
        line for line in render_script(CASES["live-gpu"], RUN_DIR, PYTHON).splitlines() if line.startswith("#SBATCH")
    ]
    assert not [line for line in header if "ntasks-per-node" in line]
    # Without it tasks stay even by each node's least number of CPUs.
    assert {"#SBATCH --nodes=4", "#SBATCH --ntasks=32", "#SBATCH --cpus-per-task=12", "#SBATCH --mincpus=96"} <= set(
        header
    )


def test_gres_only_with_gpus() -> None:
    assert "gres" not in render_script(JobConfig(), RUN_DIR, PYTHON)


def test_interpreter_of_the_job_file_is_taken() -> None:
    assert "PYTHON=/site/python\n" in render_script(JobConfig(live=LiveSection(python="/site/python")), RUN_DIR)


def test_a_line_break_cannot_smuggle_in_an_option() -> None:
    config = JobConfig(live=LiveSection(account="lab\n#SBATCH --uid=0"))
    for render in (lambda: render_script(config, RUN_DIR, PYTHON), lambda: Submission.by_hand(config)):
        with pytest.raises(BadInput, match=r"account.*line break"):
            render()


def components(*given: dict[str, str]) -> JobConfig:
    return JobConfig(live=LiveSection(component=tuple(ComponentSection(**one) for one in given)))  # type: ignore[arg-type]


def headers(config: JobConfig, option: str) -> list[list[str]]:
    """Values of an option in each component's header."""
    parts = render_script(config, RUN_DIR, PYTHON).split("#SBATCH hetjob")
    return [re.findall(rf"^#SBATCH --{option}=(.*)$", part, re.MULTILINE) for part in parts]


def test_what_slurm_would_carry_over_is_said_again() -> None:
    assert headers(components({"exclude": "n1"}, {}), "exclude") == [[], ["n1"], [""]]
    assert headers(components({}, {}), "exclude") == [[], [], []]


def test_memory_is_asked_for_by_all_or_by_none_before() -> None:
    assert headers(components({"mem": "4G"}, {"mem": "8G"}), "mem") == [["2G"], ["4G"], ["8G"]]
    assert headers(components({}, {"mem": "8G"}), "mem") == [[], [], ["8G"]]
    with pytest.raises(BadInput, match=r"live.component\[1\].mem: not given, but live.component\[0\].mem is"):
        Submission.by_hand(components({"mem": "4G"}, {}))
