"""What a worker's steps are measured by: the model's operations and the card's peak, asked for once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from worker_lab import job

from liver_slurm.base.flops import FlopsMeter
from liver_slurm.config.schema import JobConfig
from liver_slurm.worker.device import choose_device, flops_meter


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    return job(tmp_path)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets torch find a card of this name."""
    return lambda name: monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)


ENGINE: Any = SimpleNamespace(token_flops=lambda config: 1e9)
CUDA = torch.device("cuda", 0)


def test_a_cpu_has_none(config: JobConfig) -> None:
    config = replace(config, train=replace(config.train, peak_tflops=100.0))
    assert flops_meter(config, ENGINE, torch.device("cpu")) == FlopsMeter()


def test_a_usual_card_is_in_the_table_and_the_job_may_say_otherwise(config: JobConfig, card: Any) -> None:
    card("NVIDIA H200")
    assert flops_meter(config, ENGINE, CUDA) == FlopsMeter(1e9, 989.0)
    config = replace(config, train=replace(config.train, peak_tflops=700.0))
    assert flops_meter(config, ENGINE, CUDA) == FlopsMeter(1e9, 700.0)


def test_of_a_card_that_nobody_knows_the_job_says_the_peak(config: JobConfig, card: Any) -> None:
    card("a card of next year")
    assert flops_meter(config, ENGINE, CUDA) == FlopsMeter(1e9, None)
    config = replace(config, train=replace(config.train, peak_tflops=4000.0))
    assert flops_meter(config, ENGINE, CUDA) == FlopsMeter(1e9, 4000.0)


def test_a_users_own_model(config: JobConfig, card: Any) -> None:
    card("NVIDIA H200")
    engine: Any = SimpleNamespace(token_flops=lambda config: None)
    assert flops_meter(config, engine, CUDA) == FlopsMeter(None, 989.0)


def test_a_job_without_gpus_sees_no_card(config: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that has some, Slurm may leave them visible to it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch, "set_num_threads", lambda _number: None)
    assert choose_device(config) == torch.device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
