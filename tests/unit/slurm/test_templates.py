"""The templates of sbatch/ that people copy: what bash and shellcheck say, and what every one of them keeps to."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import resources

import pytest

from liver_slurm.slurm.batch import read_template

PLAIN = sorted(one.name for one in (resources.files("liver_slurm") / "sbatch").iterdir() if one.name.endswith(".sh"))
GIVEN_TO_SBATCH = [name for name in PLAIN if name != "container.sh"]


def test_they_are_all_here() -> None:
    assert PLAIN == ["chain.sh", "container.sh", "single.sh", "standby.sh"]


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


@pytest.mark.parametrize("name", PLAIN)
def test_lines_fit(name: str) -> None:
    assert max(map(len, read_template(name).splitlines())) <= 120


def _code(script: str) -> str:
    return "\n".join(line for line in script.splitlines() if not line.startswith("#"))
