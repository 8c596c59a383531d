"""Experts that are cut over other ranks than all else compute what they do with megatron-core's own dispatchers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from liver_slurm.parallel.layout import Layout

WORKER = Path(__file__).with_name("expert_worker.py")
SUPPORT = str(Path(__file__).parents[1] / "support")


@pytest.mark.long
@pytest.mark.parametrize(
    "layouts",
    [
        ("tp2pp1ep2etp1dp1", "tp2pp1etp1dp1", "tp1pp1etp2dp2", "tp2pp1dp1"),
        ("tp4pp1ep4etp1dp1", "tp2pp1ep4etp1dp2", "tp2pp1ep2etp2dp2", "tp1pp1ep2etp2dp4", "tp2pp1etp4dp2"),
    ],
    ids=["two", "four"],
)
def test_experts_compute_what_megatrons_dispatchers_do(layouts: tuple[str, ...], tmp_path: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": SUPPORT}
    logs = [tmp_path / f"{rank}.log" for rank in range(Layout.parse(layouts[0]).size)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as stream:
            command = [sys.executable, str(WORKER), str(rank), str(store.port), ",".join(layouts)]
            processes.append(subprocess.Popen(command, stdout=stream, stderr=stream, env=environment))
    try:
        codes = [process.wait(timeout=800) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert set(codes) == {0}, "\n".join(f"==== {log.name}\n{log.read_text()[-3000:]}" for log in logs)
    for log in logs:
        told = [line.split()[:2] for line in log.read_text().splitlines() if line.startswith("tp")]
        assert [layout for layout, kind in told if kind == "allgather"] == [*layouts]
        assert [layout for layout, kind in told if kind == "alltoall"] == [
            one for one in layouts if "ep2etp2" not in one
        ]
