"""The doctor on a real cluster: looks at nodes through its own jobs, leaves none behind, is never kept waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.scheduler.slurm.client import CommandClient

pytestmark = [pytest.mark.slurm, pytest.mark.cluster(nodes=2, cpus_per_node=2, gpus_per_node=0, grace=15)]
JOB = Path(__file__).parents[2] / "configs" / "gpt-tiny.toml"


def doctor(folder: Path, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "liver_slurm.cli.main", "doctor", "--json", *arguments]
    environment = {**os.environ, "LIVER_SITE": os.devnull}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == code, done.stdout + done.stderr
    findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    assert list(folder.glob(".liver-slurm-doctor*")) == []
    return findings


def test_a_cluster_that_has_what_the_demo_needs(tmp_path: Path, client: CommandClient) -> None:
    findings = doctor(tmp_path, str(JOB), "--wait", "60")
    texts = {(one["check"], one["status"]): one["text"] for one in findings}
    nodes = [one for one in findings if one["check"] == "nodes"]
    assert [one["status"] for one in nodes] == ["ok", "ok"], nodes
    for check in ("slurm", "partitions", "preemption", "grace", "clocks", "ports", "packages", "munge"):
        assert (check, "ok") in texts, findings
    assert "seen and writable on" in json.dumps(findings)
    assert all(job.is_over or job.state == "COMPLETING" for job in client.jobs())


def test_a_full_cluster_is_not_waited_for(tmp_path: Path, client: CommandClient, eventually: Any) -> None:
    script = tmp_path / "full.sh"
    script.write_text("#!/bin/bash\n#SBATCH --partition=live --nodes=2 --exclusive --output=/dev/null\nsleep 600\n")
    job = client.submit(script)
    try:
        eventually(lambda: client.jobs([job])[0].state == "RUNNING", "the cluster is full")
        findings = doctor(tmp_path, str(JOB), "--wait", "1")
        nodes = [one for one in findings if one["check"] == "nodes"]
        assert [one["status"] for one in nodes] == ["warn", "warn"]
        assert all("no free node within 1 s" in one["text"] for one in nodes)
        assert [one.leader for one in client.jobs() if not one.is_over and one.leader != job] == []
    finally:
        client.cancel([job])
