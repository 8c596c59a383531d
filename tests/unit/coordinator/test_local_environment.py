"""What workers of a run on one machine find in their environment, and which card they take by it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from liver_slurm.local.process import start, worker_environment
from liver_slurm.worker.device import claim_card


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two cards; which ones have been made current."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_each_worker_has_a_card_of_its_own_where_there_are_enough(cards: list[int]) -> None:
    environments = [worker_environment(index, 2, gpus=True) for index in range(2)]
    assert [str(claim_card(environment)) for environment in environments] == ["cuda:0", "cuda:1"]
    assert cards == [0, 1]
    assert not any("DISABLE" in name or "HOSTID" in name for environment in environments for name in environment)


def test_workers_that_share_cards_look_like_hosts_of_their_own(cards: list[int]) -> None:
    environments = [worker_environment(index, 3, gpus=True) for index in range(3)]
    assert [str(claim_card(environment)) for environment in environments] == ["cuda:0", "cuda:1", "cuda:0"]
    assert len({environment["NCCL_HOSTID"] for environment in environments}) == 3
    for way in ("P2P", "SHM", "IB"):
        assert {environment[f"NCCL_{way}_DISABLE"] for environment in environments} == {"1"}


def test_a_task_of_slurm_goes_by_its_number_there(cards: list[int]) -> None:
    environment = {"SLURM_LOCALID": "1", "LOCAL_RANK": "0"}
    assert str(claim_card(environment)) == "cuda:1"
    assert environment == {"SLURM_LOCALID": "1", "LOCAL_RANK": "0"}


def test_without_cards_there_is_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    environment = worker_environment(1, 4, gpus=False)
    place = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert environment == {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **place}
    assert "OMP_NUM_THREADS" not in worker_environment(1, 4, gpus=True)


def test_what_the_user_has_set_wins(monkeypatch: pytest.MonkeyPatch, cards: list[int]) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert "GLOO_SOCKET_IFNAME" not in worker_environment(0, 1, gpus=False)
    environment = {"NCCL_P2P_DISABLE": "0", **worker_environment(2, 3, gpus=True)}
    claim_card(environment)
    assert environment["NCCL_P2P_DISABLE"] == "0"


def test_processes_are_not_tasks_of_a_job_that_they_are_started_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "shows.py").write_text("import os; print(os.environ.get('SLURM_JOB_ID'), os.environ['EXTRA'])")
    process = start("shows", [], tmp_path / "log", {"EXTRA": "x"}, None)
    assert process.wait(20) == 0, sys.version
    assert (tmp_path / "log").read_text() == "None x\n"
