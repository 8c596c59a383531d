"""plugins/slurm/job_submit.lua in a real slurmctld: our jobs are changed as its README says, others are left alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import ClusterError
from liver_slurm.config.schema import ComponentSection, JobConfig, LiveSection, StandbySection
from liver_slurm.devcluster.lifecycle import Cluster
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.batch import read_template
from liver_slurm.scheduler.slurm.client import CommandClient
from liver_slurm.scheduler.slurm.standby import SlurmStandbys
from liver_slurm.scheduler.slurm.submit import Submission
from liver_slurm.worker.bootstrap import standby_main

pytestmark = [pytest.mark.slurm, pytest.mark.cluster(nodes=2, cpus_per_node=2, gpus_per_node=0)]


@pytest.fixture(scope="module", autouse=True)
def installed(cluster: Cluster) -> None:
    """Installed as the README says, into a cluster that runs."""
    source = resources.files("liver_slurm") / "plugins" / "slurm" / "job_submit.lua"
    (cluster.slurm_conf.parent / "job_submit.lua").write_text(
        re.sub(r"^local STANDBY_MINUTES = .*$", "local STANDBY_MINUTES = 30", source.read_text(), flags=re.MULTILINE)
    )
    cluster.slurm_conf.write_text(cluster.slurm_conf.read_text() + "JobSubmitPlugins=lua\n")
    done = subprocess.run(["scontrol", "reconfigure"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.fixture(autouse=True)
def all_are_over(client: CommandClient, eventually: Callable[..., Any]) -> Iterator[None]:
    yield
    client.cancel([job.job_id for job in client.jobs() if not job.is_over])
    eventually(lambda: all(job.is_over for job in client.jobs()), "all jobs are over")


def sbatch(script: Path | str, *options: str) -> subprocess.CompletedProcess[str]:
    """Submit held, so that what the filter made of the job can be looked at."""
    argv = ["sbatch", "--parsable", "--hold", "--output=/dev/null", *options, str(script)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)


def fields(job_id: str) -> dict[str, str]:
    argv = ["scontrol", "-o", "show", "job", job_id.strip()]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout
    return dict(re.findall(r"(\S+?)=(.*?)(?= +\S+?=| *$)", shown.splitlines()[0]))


def written(folder: Path, line: str) -> Path:
    script = folder / "job.sh"
    script.write_text(f"#!/bin/bash\n{line}\n")
    return script


STANDBY = "srun python -m liver_slurm.worker /runs/a --role standby"
LIVE = "srun python -m liver_slurm.coordinator /runs/a"


def test_a_standby_gets_partition_time_limit_comment_and_no_requeue(tmp_path: Path) -> None:
    done = sbatch(written(tmp_path, STANDBY), "--requeue")
    found = fields(done.stdout)
    assert (found["Partition"], found["TimeLimit"], found["Requeue"]) == ("scavenger", "00:30:00", "0")
    assert found["Comment"] == "liver-slurm standby"
    assert done.stderr == ""


def test_what_a_standby_asks_for_is_kept_up_to_the_limit(tmp_path: Path) -> None:
    short = sbatch(written(tmp_path, STANDBY), "--time=5", "--comment=mine")
    assert (fields(short.stdout)["TimeLimit"], fields(short.stdout)["Comment"]) == ("00:05:00", "mine")
    long = sbatch(written(tmp_path, STANDBY), "--time=2:00:00")
    assert fields(long.stdout)["TimeLimit"] == "00:30:00"
    assert "liver-slurm: the time limit of standbys is 30 minutes here" in long.stderr


def test_a_standby_where_nothing_is_taken_back_is_refused(tmp_path: Path) -> None:
    done = sbatch(written(tmp_path, STANDBY), "--partition=scavenger,prod,live")
    assert done.returncode != 0
    assert "standbys belong where Slurm can take them back (scavenger), not in prod, live; see" in done.stderr


def test_only_asking_is_filtered_too(tmp_path: Path) -> None:
    done = sbatch(written(tmp_path, STANDBY), "--test-only", "--partition=prod")
    assert "standbys belong where Slurm can take them back (scavenger), not in prod" in done.stderr


def test_an_edit_that_is_no_lua_does_no_harm(cluster: Cluster, tmp_path: Path) -> None:
    installed = cluster.slurm_conf.parent / "job_submit.lua"
    good = installed.read_text()
    installed.write_text(good + "\nend end (\n")
    try:
        assert fields(sbatch(written(tmp_path, STANDBY)).stdout)["Partition"] == "scavenger"
    finally:
        installed.write_text(good)


def test_a_live_job(tmp_path: Path) -> None:
    done = sbatch(written(tmp_path, LIVE), "--requeue", "--time=5:00:00")
    found = fields(done.stdout)
    assert (found["Partition"], found["Comment"]) == ("live", "liver-slurm live")
    assert (found["Requeue"], found["TimeLimit"]) == ("1", "05:00:00"), "that is the job's own affair"


def test_the_products_own_jobs(client: CommandClient, tmp_path: Path, eventually: Callable[..., Any]) -> None:
    run_dir = RunDir(tmp_path / "run")
    for folder in (run_dir.path, run_dir.logs, run_dir.standby):
        folder.mkdir()
    python = shutil.which("true")
    two = (ComponentSection(), ComponentSection(partition="prod"))
    standby = StandbySection(partitions=("scavenger",), max_jobs=1, time="4:00:00")
    config = JobConfig(live=LiveSection(partition=None, python=python, component=two), standby=standby)
    job = Submission.for_cluster(config, client).submit(run_dir)
    assert [info.partition for info in client.jobs([job])] == ["live", "live", "prod"]
    assert {info.comment for info in client.jobs([job])} == {str(run_dir.path)}

    (started,) = SlurmStandbys(config, run_dir, client, standby_main).launch(1)
    assert fields(started)["TimeLimit"] == "00:30:00"

    reclaimable = (ComponentSection(), ComponentSection(partition="scavenger"))
    with pytest.raises(ClusterError, match="no part of a guaranteed job can be in scavenger: Slurm would take back"):
        Submission.for_cluster(JobConfig(live=LiveSection(python=python, component=reclaimable)), client).submit(
            run_dir
        )
    wrong = JobConfig(standby=StandbySection(partitions=("prod",), max_jobs=1))
    with pytest.raises(ClusterError, match=r"a standby job was refused: .*standbys belong"):
        SlurmStandbys(wrong, run_dir, client, standby_main).launch(1)


def test_templates_by_hand(tmp_path: Path) -> None:
    script = tmp_path / "standby.sh"
    script.write_text(read_template("standby.sh"))
    done = sbatch(script, "/runs/a")
    assert fields(done.stdout)["Partition"] == "scavenger"
    assert fields(done.stdout)["TimeLimit"] == "00:30:00"


@pytest.mark.parametrize("line", ["sleep 100", "python -m liver_slurm.plugins.submitit /jobs", "echo '--role standby'"])
def test_other_jobs_are_left_alone(tmp_path: Path, line: str) -> None:
    options = ["--partition=scavenger", "--requeue", "--time=40", "--job-name=a-standby"]
    found = fields(sbatch(written(tmp_path, line), *options).stdout)
    assert (found["Partition"], found["TimeLimit"], found["Requeue"]) == ("scavenger", "00:40:00", "1")
    assert "Comment" not in found
    plain = fields(sbatch(written(tmp_path, line)).stdout)
    assert (plain["Partition"], plain["TimeLimit"], plain["Requeue"]) == ("live", "UNLIMITED", "1")


def test_heterogeneous_jobs_of_others_are_left_alone(client: CommandClient, tmp_path: Path) -> None:
    header = "#SBATCH --comment=c\n#SBATCH hetjob\n#SBATCH --comment=c\n#SBATCH --partition=scavenger\ntrue"
    job = sbatch(written(tmp_path, header)).stdout.strip()
    assert [info.partition for info in client.jobs([job])] == ["live", "scavenger"]
