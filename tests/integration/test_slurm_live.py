"""The guaranteed job's script on a real cluster; a stand-in for Python plays coordinator and workers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import ComponentSection, JobConfig, LiveSection, StandbySection
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.batch import render_script
from liver_slurm.scheduler.slurm.client import CommandClient
from liver_slurm.scheduler.slurm.submit import Submission, check_submittable

pytestmark = [pytest.mark.slurm, pytest.mark.cluster(nodes=4, gpus_per_node=2), pytest.mark.slow]

# Called as PYTHON -m liver_slurm.coordinator RUN_DIR …, or with liver_slurm.worker. A coordinator ends with the codes
# in RUN_DIR/codes, one line for each start, when RUN_DIR/end-coordinator appears; "kill" dies of a signal at once.
STAND_IN = r"""#!/bin/bash
echo "args=$* proc=$SLURM_PROCID node=$SLURMD_NODENAME threads=$OMP_NUM_THREADS gpus=${CUDA_VISIBLE_DEVICES:-} pid=$$"
echo "setup=${SETUP_DONE:-}"
case $2 in
liver_slurm.coordinator)
    trap 'echo got TERM; exit 3' TERM
    echo start >> "$RUN_DIR/starts"
    code=$(sed -n "$(wc -l < "$RUN_DIR/starts")p" "$RUN_DIR/codes")
    [ "$code" != kill ] || kill -9 $$
    [ "$code" -ge 10 ] && [ "$code" != 70 ] || exit "$code"
    until [ -e "$RUN_DIR/end-coordinator" ]; do sleep 0.05; done
    exit "$code" ;;
liver_slurm.worker)
    [ ! -e "$RUN_DIR/stubborn" ] || trap 'echo ignored TERM' TERM
    if [ -e "$RUN_DIR/crash-$SLURM_PROCID" ]; then exit 9; fi
    until [ -e "$RUN_DIR/end-workers" ]; do sleep 0.05; done ;;
esac
"""


class Run:
    """A run directory with a stand-in for Python in it."""

    def __init__(self, path: Path, codes: str) -> None:
        self.dir = RunDir(path)
        path.mkdir()
        self.dir.logs.mkdir()
        (path / "codes").write_text(codes + "\n")
        self.python = path / "python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def config(self, **live: Any) -> JobConfig:
        options = {"partition": "live", "time": "10:00", "python": str(self.python), **live}
        return JobConfig(live=LiveSection(**options))

    def log(self, name: str) -> str:
        path = self.dir.logs / name
        return path.read_text() if path.exists() else ""

    def touch(self, name: str) -> None:
        (self.dir.path / name).touch()

    def starts(self) -> int:
        path = self.dir.path / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0


def over(client: CommandClient, job: str) -> list[str]:
    """States of all components, once none of them runs any more; empty before."""
    jobs = client.jobs([job])
    return [one.state for one in jobs] if all(one.is_over for one in jobs) else []


def test_two_components_with_different_resources_are_one_world(
    client: CommandClient, tmp_path: Path, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # a user's own number would win
    client = CommandClient()  # with the environment as it is now
    run = Run(tmp_path / "run", "10")
    components = (
        ComponentSection(nodes=2, tasks_per_node=2, gpus_per_task=1),
        ComponentSection(nodes=1, cpus_per_task=3),
    )
    config = run.config(component=components, setup=("export SETUP_DONE='a \"b\"'",))
    run.touch("crash-3")
    job = Submission.for_cluster(config, client).submit(run.dir, ["--extra", "two words"])

    eventually(lambda: all(run.log(f"live-{rank}.log").count("setup=") for rank in range(5)), "5 workers started")
    eventually(lambda: run.log("coordinator.log").count("setup="), "the coordinator started")
    assert "gpus=0,1" in run.log("live-0.log")
    assert [re.findall(r"threads=(\d+)", run.log(f"live-{rank}.log"))[0] for rank in range(5)] == ["1"] * 4 + ["3"]
    assert f"args=-m liver_slurm.worker {run.dir.path} --role live" in run.log("live-4.log")
    assert 'setup=a "b"' in run.log("live-4.log")
    called = f"args=-m liver_slurm.coordinator {run.dir.path} --decided-codes --extra two words proc=0"
    assert called in run.log("coordinator.log")

    infos = client.jobs([job])
    assert [one.job_id for one in infos] == [f"{job}+{number}" for number in range(3)]
    assert [len(one.nodes) for one in infos] == [1, 2, 1]
    assert {one.comment for one in infos} == {str(run.dir.path)}
    assert infos[1].time_limit == 600

    # Worker 3 has crashed long ago; that took no other with it.
    assert {one.state for one in infos} == {"RUNNING"}
    run.touch("end-workers")
    run.touch("end-coordinator")
    assert eventually(lambda: over(client, job), "the job is over") == ["COMPLETED"] * 3


def test_a_coordinator_that_dies_is_started_again(
    client: CommandClient, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    run = Run(tmp_path / "run", "kill\n70\n13")
    job = Submission.for_cluster(run.config(), client).submit(run.dir)
    eventually(lambda: run.starts() == 3, "three starts")
    assert {one.state for one in client.jobs([job])} == {"RUNNING"}
    assert len(re.findall(r"pid=\d+", run.log("live-0.log"))) == 1, "the worker was not touched"
    run.touch("end-workers")
    run.touch("end-coordinator")
    # 13 is a run that was cancelled: no failure of the job.
    assert eventually(lambda: over(client, job), "the job is over") == ["COMPLETED"] * 2
    output = run.log(f"slurm-{job}.out")
    assert "ended with code 137: starting it again" in output
    assert "ended with code 70: starting it again" in output


def test_the_coordinators_failure_is_the_jobs(
    client: CommandClient, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    run = Run(tmp_path / "run", "11")
    run.touch("end-coordinator")
    run.touch("end-workers")
    job = Submission.for_cluster(run.config(), client).submit(run.dir)
    assert eventually(lambda: over(client, job), "the job is over")[0] == "FAILED"
    assert run.starts() == 1


def test_a_coordinator_that_never_served_is_tried_three_times(
    client: CommandClient, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    run = Run(tmp_path / "run", "1\n2\n2")
    job = Submission.for_cluster(run.config(), client).submit(run.dir)
    eventually(lambda: run.starts() == 3, "three starts")
    said = "ended with code 2, 3 times, and has never served: giving up"
    eventually(lambda: said in run.log(f"slurm-{job}.out"), "it is given up while there are workers")
    run.touch("end-workers")
    assert eventually(lambda: over(client, job), "the job is over")[0] == "FAILED"


def test_a_missing_interpreter_is_given_up(
    client: CommandClient, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    run = Run(tmp_path / "run", "10")
    job = Submission.for_cluster(run.config(python="/no/such/python"), client).submit(run.dir)
    assert eventually(lambda: over(client, job), "the job is over")[0] == "FAILED"
    assert "/no/such/python" in run.log("coordinator.log")
    assert "giving up" in run.log(f"slurm-{job}.out")  # at the latest at the third time


def test_scancel_ends_everything(client: CommandClient, tmp_path: Path, eventually: Callable[..., Any]) -> None:
    run = Run(tmp_path / "run", "10")
    job = Submission.for_cluster(run.config(), client).submit(run.dir)
    eventually(lambda: run.starts() == 1 and run.log("live-0.log"), "the run started")
    client.cancel([job])
    eventually(lambda: over(client, job), "the job is over", timeout=20)
    assert "got TERM" in run.log("coordinator.log")
    assert run.starts() == 1


def test_workers_that_do_not_end_are_ended(
    client: CommandClient, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    run = Run(tmp_path / "run", "10")
    run.touch("stubborn")
    run.touch("end-coordinator")
    script = render_script(run.config(), run.dir)
    assert "\nPATIENCE=20\n" in script
    run.dir.batch_script.write_text(script.replace("PATIENCE=20", "PATIENCE=2"))
    job = client.submit(run.dir.batch_script)
    assert eventually(lambda: over(client, job), "the job is over")[0] == "COMPLETED"
    assert "ignored TERM" in run.log("live-0.log")


def test_check_submittable(client: CommandClient, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "10")
    assert check_submittable(run.config(), client) == []
    assert check_submittable(run.config(partition=None), client) == [], "the default partition"

    components = (
        ComponentSection(nodes=5),
        ComponentSection(tasks_per_node=2, cpus_per_task=3),
        ComponentSection(tasks_per_node=4, gpus_per_task=1),
        ComponentSection(partition="prd"),
    )
    config = JobConfig(
        live=LiveSection(partition="live", time="4h", component=components),
        standby=StandbySection(partitions=("scavenger", "scavanger"), max_jobs=2),
    )
    assert check_submittable(config, client) == [
        "live.time: '4h' is not a time as Slurm writes it, e.g. 90, 1:30:00 or 2-12:00:00",
        "live.component[0]: wants 5 nodes with 1 CPU; partition live has 4 of them among its 4",
        "live.component[1]: wants 1 node with 6 CPUs; partition live has 0 of them among its 4",
        "live.component[2]: wants 1 node with 4 CPUs, 4 GPUs; partition live has 0 of them among its 4",
        'live.component[3].partition: no partition "prd" on this cluster; the nearest is prod',
        'standby.partitions[1]: no partition "scavanger" on this cluster; the nearest is scavenger',
    ]
    before = client.jobs()
    with pytest.raises(BadInput, match="wants 5 nodes"):
        Submission.for_cluster(config, client).submit(run.dir)
    assert client.jobs() == before
    assert not run.dir.batch_script.exists()
