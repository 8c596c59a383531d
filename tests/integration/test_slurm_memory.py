"""A cluster that tracks memory: each step gets its own component's, not the coordinator's."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.config.schema import ComponentSection, JobConfig, LiveSection
from liver_slurm.rundir.paths import RunDir
from liver_slurm.scheduler.slurm.client import CommandClient
from liver_slurm.scheduler.slurm.headroom import Unit, idle_units
from liver_slurm.scheduler.slurm.submit import Submission

pytestmark = [pytest.mark.slurm, pytest.mark.cluster(nodes=3, extra=("SelectTypeParameters=CR_Core_Memory",))]


def test_steps_get_their_components_memory(
    client: CommandClient, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.logs.mkdir()
    python = tmp_path / "python"
    python.write_text("#!/bin/bash\nexec sleep 1000\n")
    python.chmod(0o755)
    components = (ComponentSection(mem="512M"), ComponentSection(mem="600M"))
    live = LiveSection(partition="live", time="10:00", python=str(python), component=components)
    before = client.nodes("live")
    job = Submission.for_cluster(JobConfig(live=live), client).submit(run_dir)

    def memory() -> list[str]:
        """Memory of each step that is not the batch script, by step."""
        argv = ["scontrol", "-o", "show", "step"]
        steps = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout
        return sorted(re.findall(r" Name=bash .*?TRES=\S*mem=(\w+)", steps))

    assert eventually(lambda: memory() if len(memory()) == 3 else None, "three steps") == ["2G", "512M", "600M"]
    half = Unit(1, 1, memory=before[0].memory // 2)
    assert [node.memory - node.memory_idle for node in client.nodes("live")] == [2048, 512, 600]
    assert idle_units(before, half) == 6
    # For a moment the nodes are still `mixed+planned`: spoken for by a pending job, as this one was.
    eventually(lambda: idle_units(client.nodes("live"), half) == 3, "half of each node's memory is left")
    client.cancel([job])
