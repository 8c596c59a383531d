"""A run's life by its commands, on a real cluster: submit, resize, checkpoint, cancel, and submit --resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paced_samples
import pytest

from liver_slurm.rundir.event_log import read_documents
from liver_slurm.rundir.metrics import read_metrics
from liver_slurm.scheduler.slurm.client import CommandClient

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.cluster(nodes=3, cpus_per_node=1, gpus_per_node=0),  # the coordinator and two workers
]

STEPS = 40
JOB = """
[job]
run_root = "{root}"
heartbeat = 0.2
[model]
num_layers = 2
hidden_size = 32
num_attention_heads = 4
num_query_groups = 2
ffn_hidden_size = 48
vocab_size = 61
[data]
provider = "paced_samples:provide"
[train]
steps = {steps}
seq_length = 16
micro_batch_size = 1
global_batch_size = 12
[live]
partition = "live"
coordinator_partition = "live"
[[live.component]]
nodes = 2
[standby]
max_jobs = 0
[elastic]
initial = "tp1pp1dp2"
[checkpoint]
every = 0
at_end = false
"""


class Commands:
    """The command line, in a home and a folder of runs of its own."""

    def __init__(self, folder: Path) -> None:
        self.root, self.job = folder / "runs", folder / "job.toml"
        self.root.mkdir()
        self.job.write_text(JOB.format(root=self.root, steps=STEPS))
        self._environment = {
            **os.environ,
            "HOME": str(folder),
            "PYTHONPATH": str(paced_samples.FOLDER),
        }

    def __call__(self, *arguments: str | Path, timeout: float = 60.0) -> dict[str, Any]:
        """Run a command that must succeed; what it prints with --json."""
        command = [sys.executable, "-m", "liver_slurm.cli.main", *map(str, arguments), "--json"]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        document: dict[str, Any] = json.loads(done.stdout)
        return document


def losses(run_dir: str | Path) -> dict[int, float]:
    lines = list(read_metrics(Path(run_dir) / "metrics.jsonl"))
    steps = [line.step for line in lines]
    assert steps == list(range(steps[0], steps[-1] + 1)), "every step once"
    return {line.step: line.loss for line in lines}


def named(run_dir: str, event: str) -> list[dict[str, Any]]:
    return [dict(each) for each in read_documents(Path(run_dir) / "events.jsonl") if each["event"] == event]


def test_a_run_by_its_commands(tmp_path: Path, client: CommandClient, eventually: Callable[..., Any]) -> None:
    liver = Commands(tmp_path)
    slow = liver.root / paced_samples.SLOW
    slow.touch()
    first = liver("submit", liver.job)
    job, run_dir = first["job_id"], first["run_dir"]
    eventually(lambda: named(run_dir, "world_live"), "the run trains", 60)
    assert liver("resize", job, "--layout", "tp2pp1dp1")["layout"] == "tp2pp1dp1"
    eventually(lambda: named(run_dir, "reconfiguration_committed"), "resized", 60)
    status = liver("status", job)
    assert (status["state"], status["layout"]) == ("training", "tp2pp1dp1")
    liver("checkpoint", job)
    saved = eventually(lambda: named(run_dir, "checkpoint_written"), "a checkpoint", 60)[0]["step"]
    liver("cancel", job)
    eventually(lambda: all(each.is_over for each in client.jobs()), "an empty queue", 60)
    status = liver("status", job)
    assert (status["state"], status["reason"]) == ("cancelled", "cancelled on request")
    assert saved <= status["step"] < STEPS

    slow.unlink()
    second = liver("submit", "--resume", run_dir, "--set", "elastic.initial=tp1pp2dp1", "--wait", timeout=120)
    assert liver("status", second["job_id"])["state"] == "finished"
    after = losses(second["run_dir"])
    assert list(after) == list(range(saved + 1, STEPS + 1)), "goes on after the checkpoint, to the end"
    undisturbed = losses(liver("run", liver.job, "--workers", "2", timeout=120)["run_dir"])
    assert {**losses(run_dir), **after} == pytest.approx(undisturbed, rel=1e-6)
