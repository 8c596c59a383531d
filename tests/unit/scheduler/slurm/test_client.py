"""Slurm's commands, as scripts that print what sites make them print."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from liver_slurm.scheduler.slurm.client import CommandClient, header_options
from liver_slurm.scheduler.slurm.command import NotAnswering


@pytest.fixture
def client(tmp_path: Path) -> CommandClient:
    return CommandClient({"PATH": f"{tmp_path}:{os.environ['PATH']}", "SBATCH_ACCOUNT": "mine", "SBATCH_QOS": "low"})


def command(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("printed", "job_id"),
    [
        ("33", "33"),
        ("33;cluster", "33"),
        ("-----------\n Welcome to TACC, 2 jobs\n-----------\n--> Verifying 1 node...OK\n33", "33"),
        ("12 new messages\n33;west\n", "33"),
    ],
)
def test_the_id_is_the_line_that_is_one(tmp_path: Path, client: CommandClient, printed: str, job_id: str) -> None:
    command(tmp_path, "sbatch", f"cat <<'X'\n{printed}\nX")
    (tmp_path / "job.sh").write_text("#!/bin/bash\n")
    assert client.submit(tmp_path / "job.sh") == job_id


def test_an_answer_without_an_id_may_belong_to_a_job(tmp_path: Path, client: CommandClient) -> None:
    command(tmp_path, "sbatch", "echo Submitted")
    (tmp_path / "job.sh").write_text("#!/bin/bash\n")
    with pytest.raises(NotAnswering, match="printed no job id"):
        client.submit(tmp_path / "job.sh")


def test_the_script_has_the_last_word(tmp_path: Path, client: CommandClient) -> None:
    command(tmp_path, "sbatch", 'echo "${SBATCH_ACCOUNT:-}|${SBATCH_QOS:-}" > "$(dirname "$0")/seen"; echo 7')
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n#SBATCH --account=lab\n#SBATCH --time=1:00\n")
    assert header_options(script) == {"account", "time"}
    client.submit(script)
    assert (tmp_path / "seen").read_text() == "|low\n"


@pytest.mark.parametrize(("own", "asked"), [(True, [f"--user={os.getuid()}"]), (False, [])])
def test_only_own_jobs_are_asked_for_by_id(tmp_path: Path, client: CommandClient, own: bool, asked: list[str]) -> None:
    command(tmp_path, "squeue", 'echo "$@" > "$(dirname "$0")/seen"')
    assert client.jobs(["7"], own=own) == []
    words = (tmp_path / "seen").read_text().split()
    assert "--jobs=7" in words
    assert [word for word in words if word.startswith("--user")] == asked
