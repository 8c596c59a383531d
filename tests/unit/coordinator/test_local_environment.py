"""What workers of a run on one machine find in their environment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from liver_slurm.local.process import start, worker_environment


def test_workers_on_one_card_look_like_hosts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NCCL_HOSTID", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    first, second = worker_environment("live-0", gpus=True), worker_environment("live-1", gpus=True)
    assert first["NCCL_HOSTID"] != second["NCCL_HOSTID"]
    assert first["NCCL_P2P_DISABLE"] == first["NCCL_SHM_DISABLE"] == first["NCCL_IB_DISABLE"] == "1"
    assert "OMP_NUM_THREADS" not in first
    assert worker_environment("live-0", gpus=False) == {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def test_what_the_user_has_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert "GLOO_SOCKET_IFNAME" not in worker_environment("live-0", gpus=False)


def test_processes_are_not_tasks_of_a_job_that_they_are_started_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "shows.py").write_text("import os; print(os.environ.get('SLURM_JOB_ID'), os.environ['EXTRA'])")
    process = start("shows", [], tmp_path / "log", {"EXTRA": "x"}, None)
    assert process.wait(20) == 0, sys.version
    assert (tmp_path / "log").read_text() == "None x\n"
