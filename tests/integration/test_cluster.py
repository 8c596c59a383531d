"""`liver-slurm cluster`: a real Slurm comes up, works, and leaves nothing."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from liver_slurm.base.errors import BadInput, ClusterError
from liver_slurm.cli import cluster as command
from liver_slurm.devcluster import lifecycle
from liver_slurm.devcluster.ports import BLOCK, choose_block, is_free, port_lock
from liver_slurm.devcluster.processes import cluster_processes
from liver_slurm.devcluster.spec import ClusterDir, ClusterSpec
from liver_slurm.scheduler.slurm.client import CommandClient

pytestmark = pytest.mark.slurm

needs_slurm = pytest.mark.skipif(
    shutil.which("slurmctld", path=lifecycle.SEARCH_PATH) is None, reason="no slurmctld here; `make setup` installs it"
)
needs_accounting = pytest.mark.skipif(
    any(shutil.which(name, path=lifecycle.SEARCH_PATH) is None for name in lifecycle.accounting.PROGRAMS),
    reason="no slurmdbd and MariaDB here; they are optional",
)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A place for a cluster; whatever is brought up there is taken down."""
    parent = Path(tempfile.mkdtemp(prefix="liver-cluster-"))
    path = parent / "c"
    yield path
    if path.exists() and any(path.iterdir()):
        lifecycle.down(path)
    shutil.rmtree(parent)


@pytest.fixture
def another(directory: Path) -> Iterator[Path]:
    path = directory.parent / "d"
    yield path
    if path.exists():
        lifecycle.down(path)


def cli(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["cluster", *arguments])
    return int(args.run(args))


def client_of(path: Path) -> CommandClient:
    return CommandClient({**os.environ, "SLURM_CONF": str(ClusterDir(path).slurm_conf)})


def sbatch(path: Path, *arguments: str) -> str:
    environment = {**os.environ, "SLURM_CONF": str(ClusterDir(path).slurm_conf)}
    argv = ["sbatch", "--parsable", "--output=/dev/null", *arguments]
    return subprocess.run(argv, env=environment, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


@needs_slurm
def test_up_use_status_down(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("up", "--dir", str(directory), "--nodes", "2", "--grace", "3", "--gpus-per-node", "1", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["slurm_conf"] == str(directory / "etc" / "slurm.conf")

    assert cli("env", "--dir", str(directory)) == 0
    assert capsys.readouterr().out == f"export SLURM_CONF={directory}/etc/slurm.conf\n"

    client = client_of(directory)
    partitions = {one.name: one for one in client.partitions()}
    assert [one.name for one in sorted(partitions.values(), key=lambda one: -one.priority_tier)] == [
        "live",
        "prod",
        "scavenger",
    ]
    assert partitions["live"].is_default
    assert (partitions["scavenger"].preempt_mode, partitions["scavenger"].grace) == ("CANCEL", 3)
    assert [(node.name, node.state, node.cpus, node.gpus) for node in client.nodes("scavenger")] == [
        ("n1", "idle", 4, 1),
        ("n2", "idle", 4, 1),
    ]

    assert cli("status", "--dir", str(directory), "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["running"]
    assert {name: len(pids) for name, pids in status["daemons"].items()} == {"munged": 1, "slurmctld": 1, "slurmd": 2}
    assert [node["state"] for node in status["nodes"]] == ["idle", "idle"]
    assert cli("status", "--dir", str(directory)) == 0
    assert "n2" in capsys.readouterr().out

    assert cli("down", "--dir", str(directory)) == 0
    assert not directory.exists()
    assert cluster_processes(ClusterDir(directory).slurm_conf) == []
    assert not any(psutil.pid_exists(pid) and is_running(pid) for pids in status["daemons"].values() for pid in pids)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@needs_slurm
def test_down_ends_stubborn_jobs_and_what_they_left_behind(directory: Path, eventually: Callable[..., Any]) -> None:
    lifecycle.up(ClusterSpec(directory=directory, nodes=1))
    marker = directory.parent / "pids"
    body = f"trap '' TERM CONT; setsid sleep 1000 & echo $! $$ > {marker}; srun sleep 1000"
    job = sbatch(directory, f"--wrap={body}")
    client = client_of(directory)
    eventually(lambda: marker.exists() and len(marker.read_text().split()) == 2, "the job runs")
    eventually(lambda: client.jobs([job])[0].state == "RUNNING", "the job runs")
    pids = [int(text) for text in marker.read_text().split()]
    lifecycle.down(directory)
    assert not any(is_running(pid) for pid in pids)


@needs_slurm
def test_two_side_by_side(directory: Path, another: Path) -> None:
    first = lifecycle.up(ClusterSpec(directory=directory, nodes=1))
    second = lifecycle.up(ClusterSpec(directory=another, nodes=2, preempt_mode="requeue"))
    assert abs(first.port - second.port) >= BLOCK
    job = sbatch(directory, "--wrap=sleep 100")
    assert [one.job_id for one in client_of(directory).jobs()] == [job]
    assert client_of(another).jobs() == []
    assert len(client_of(directory).nodes("live")) == 1
    assert len(client_of(another).nodes("live")) == 2
    assert {one.name: one.preempt_mode for one in client_of(another).partitions()}["scavenger"] == "REQUEUE"
    lifecycle.down(directory)
    assert lifecycle.status(another)["running"]
    assert client_of(another).jobs() == []


@needs_slurm
def test_second_up_is_refused_and_changes_nothing(directory: Path) -> None:
    lifecycle.up(ClusterSpec(directory=directory, nodes=1))
    before = lifecycle.status(directory)["daemons"]
    with pytest.raises(BadInput, match=f"a cluster runs in {directory}.*cluster down --dir"):
        lifecycle.up(ClusterSpec(directory=directory, nodes=2))
    assert lifecycle.status(directory)["daemons"] == before


@needs_slurm
def test_a_directory_that_holds_something_else_is_left_alone(directory: Path) -> None:
    directory.mkdir()
    thesis = directory / "thesis.tex"
    thesis.write_text("years of work")
    with pytest.raises(BadInput, match=r"holds thesis\.tex, which is no cluster's"):
        lifecycle.up(ClusterSpec(directory=directory))
    with pytest.raises(BadInput, match="no cluster in"):
        lifecycle.down(directory)
    assert thesis.read_text() == "years of work"
    shutil.rmtree(directory)


@needs_slurm
def test_port_in_use(directory: Path) -> None:
    with port_lock():
        base = choose_block(1).base
        taken = socket.create_server(("127.0.0.1", base))
    with taken:
        with pytest.raises(BadInput, match=f"--port {base}: port {base} is in use"):
            lifecycle.up(ClusterSpec(directory=directory, nodes=1, port=base))
        assert cluster_processes(ClusterDir(directory).slurm_conf) == []
    assert is_free(base)


def test_a_port_that_begins_no_block(directory: Path) -> None:
    with pytest.raises(BadInput, match="--port 12345: must be a multiple of 512"):
        choose_block(1, 12345)


def test_missing_packages(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "SEARCH_PATH", str(directory))
    with pytest.raises(ClusterError, match=r"missing on this machine: munged, slurmctld, .*: apt-get install -y "):
        lifecycle.up(ClusterSpec(directory=directory))
    assert not directory.exists()


@needs_slurm
def test_a_cluster_that_cannot_start_says_why_and_leaves_no_process(directory: Path) -> None:
    with pytest.raises(ClusterError, match=r"(?=.*select/nonsense).*fatal: .*; logs are in"):
        lifecycle.up(ClusterSpec(directory=directory, nodes=1, extra=("SelectType=select/nonsense",)))
    assert cluster_processes(ClusterDir(directory).slurm_conf) == []
    assert (directory / "log" / "slurmctld.log").exists() or (directory / "log" / "boot.log").exists()
    with pytest.raises(BadInput, match="did not come up; its logs are in"):
        lifecycle.status(directory)
    lifecycle.up(ClusterSpec(directory=directory, nodes=1))  # nothing that is left stands in the way


def test_no_cluster_there(directory: Path) -> None:
    for verb in ("env", "status", "down"):
        with pytest.raises(BadInput, match=f"no cluster in {directory}: bring one up"):
            cli(verb, "--dir", str(directory))


@needs_slurm
@needs_accounting
def test_accounting(directory: Path, eventually: Callable[..., Any]) -> None:
    lifecycle.up(ClusterSpec(directory=directory, nodes=1, accounting=True))
    job = sbatch(directory, "--wrap=true")
    environment = {**os.environ, "SLURM_CONF": str(ClusterDir(directory).slurm_conf)}

    def state() -> str:
        argv = ["sacct", "-n", "-X", "-j", job, "-o", "State"]
        return subprocess.run(
            argv, env=environment, capture_output=True, text=True, timeout=30, check=True
        ).stdout.strip()

    eventually(lambda: state() == "COMPLETED", "sacct knows that the job has completed")
    assert {"slurmdbd", "mariadbd"} <= set(lifecycle.status(directory)["daemons"])
    lifecycle.down(directory)
    assert not directory.exists()
