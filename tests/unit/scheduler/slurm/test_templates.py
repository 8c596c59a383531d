"""The templates of sbatch/ that people copy: what bash and shellcheck say, and what every one of them keeps to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from liver_slurm.scheduler.slurm.batch import read_template

PLAIN = sorted(one.name for one in (resources.files("liver_slurm") / "sbatch").iterdir() if one.name.endswith(".sh"))
GIVEN_TO_SBATCH = [name for name in PLAIN if name != "container.sh"]


def test_they_are_all_here() -> None:
    assert PLAIN == ["chain.sh", "container.sh", "single.sh", "standby.sh"]


def test_a_python_in_a_container_can_be_executed() -> None:
    assert os.access(Path(__file__).parents[4] / "sbatch/container.sh", os.X_OK)


@pytest.mark.parametrize("name", PLAIN)
def test_bash_and_shellcheck_find_nothing(name: str) -> None:
    programs = [["bash", "-n", "/dev/stdin"]]
    if shutil.which("shellcheck") is not None:
        programs.append(["shellcheck", "--shell=bash", "-"])
    for argv in programs:
        done = subprocess.run(argv, input=read_template(name), text=True, capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", PLAIN)
def test_the_users_arguments_are_passed_through(name: str) -> None:
    assert '"$@"' in _code(read_template(name))


@pytest.mark.parametrize("name", GIVEN_TO_SBATCH)
def test_no_number_of_the_header_is_written_again(name: str) -> None:
    script = read_template(name)
    header = re.findall(
        r"^#+SBATCH --(nodes|ntasks|ntasks-per-node|cpus-per-task|gres|time)=(\S+)", script, re.MULTILINE
    )
    assert header, "people change numbers in one place, the header"
    for option, _ in header:
        # The one that is not the header's: a single coordinator on a single node.
        written = set(re.findall(rf"--{option}[= ](\d+)", _code(script)))
        assert written <= ({"1"} if name == "single.sh" and option in ("nodes", "ntasks") else set())


@pytest.mark.parametrize(
    ("run", "goes_on"), [("stopped", True), ("finished", False), ("cancelled", False), ("lost", None)]
)
def test_a_chain_without_sacct_asks_the_run_how_a_forgotten_job_ended(
    tmp_path: Path, run: str, goes_on: bool | None
) -> None:
    for program in ("head", "sed"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    stand_in(tmp_path, "squeue", "exit 1")  # as for a job that slurmctld does not know any more
    stand_in(tmp_path, "sbatch", 'echo "sbatch $*"')
    stand_in(tmp_path, "liver-slurm", f'case $1 in status) echo \'  "state": "{run}",\' ;; *) echo "$*" >&2 ;; esac')
    done = subprocess.run(
        [str(shutil.which("bash")), "-s", "job.toml"],
        input=read_template("chain.sh"),
        env={"PATH": str(tmp_path), "LIVER_CHAIN_JOB": "7"},
        text=True,
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == f"chain.sh: job 7 ended; the run: {run}"
    assert ("--resume 7" in done.stderr) == (goes_on is not False)
    if goes_on is None:
        (line,) = done.stderr.splitlines()
        assert line.startswith("chain.sh: Slurm has forgotten how job 7 ended, and there is no accounting (sacct)")
        assert line.endswith("with --resume 7 after the job file")


def stand_in(folder: Path, name: str, commands: str) -> None:
    path = folder / name
    path.write_text(f"#!{shutil.which('bash')}\n{commands}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("name", PLAIN)
def test_lines_fit(name: str) -> None:
    assert max(map(len, read_template(name).splitlines())) <= 120


def _code(script: str) -> str:
    return "\n".join(line for line in script.splitlines() if not line.startswith("#"))
