"""What workers of a run on one machine find in their environment, and which card they take by it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from liver_slurm.scheduler.local.process import start, worker_environment
from liver_slurm.worker.device import claim_card


class Cards:
    """Two cards, as torch would see them: all of them, or those that the environment leaves."""

    def __init__(self, environment: dict[str, str], started: bool = False) -> None:
        self.environment = environment
        self._visible = self._look() if started else None

    def _look(self) -> list[str]:
        return self.environment.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")

    def init(self) -> None:
        self._visible = self._visible or self._look()

    def device_count(self) -> int:
        return len(self._visible or self._look())


def claim(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], started: bool = False) -> str:
    """The card that this environment's process claims."""
    cards = Cards(environment, started)
    monkeypatch.setattr(torch.cuda, "device_count", cards.device_count)
    monkeypatch.setattr(torch.cuda, "init", cards.init)
    assert str(claim_card(environment)) == "cuda:0", "of those that it sees"
    return environment["CUDA_VISIBLE_DEVICES"]


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)


def test_each_worker_has_a_card_of_its_own_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    environments = [worker_environment(index, 2, gpus=True) for index in range(2)]
    assert [claim(monkeypatch, environment) for environment in environments] == ["0", "1"]
    assert not any("DISABLE" in name or "HOSTID" in name for environment in environments for name in environment)


def test_workers_that_share_cards_look_like_hosts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    environments = [worker_environment(index, 3, gpus=True) for index in range(3)]
    assert [claim(monkeypatch, environment) for environment in environments] == ["0", "1", "0"]
    assert len({environment["NCCL_HOSTID"] for environment in environments}) == 3
    for way in ("P2P", "SHM", "IB"):
        assert {environment[f"NCCL_{way}_DISABLE"] for environment in environments} == {"1"}


def test_a_task_of_slurm_goes_by_its_number_and_its_cards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shell = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8"}  # in which somebody has submitted the job
    environment = {"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "5,7", **shell}
    assert claim(monkeypatch, environment) == "7"
    assert {name for name in environment if name.startswith("NCCL")} == {"NCCL_RUNTIME_CONNECT"}, "no card is shared"
    assert claim(monkeypatch, {"SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "GPU-5"}) == "GPU-5"


def test_a_card_that_cannot_be_chosen_any_more_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="CUDA was started before"):
        claim(monkeypatch, worker_environment(1, 2, gpus=True), started=True)


@pytest.mark.parametrize(("cores", "threads"), [(2, "1"), (15, "1"), (16, "2"), (64, "8")])
def test_without_cards_half_of_a_workers_cores_compute(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: str
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(cores)))
    place = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    environment = worker_environment(1, 4, gpus=False)
    assert environment == {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": threads, **place}
    assert "OMP_NUM_THREADS" not in worker_environment(1, 4, gpus=True)


def test_what_the_user_has_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert "GLOO_SOCKET_IFNAME" not in worker_environment(0, 1, gpus=False)
    environment = {"NCCL_P2P_DISABLE": "0", **worker_environment(2, 3, gpus=True)}
    claim(monkeypatch, environment)
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
