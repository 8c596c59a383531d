"""What a worker says of a step, and asks of its world before one; nothing is trained here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from coordinator_lab import PATIENCE
from worker_lab import job

from liver_slurm.base.errors import LiverError
from liver_slurm.base.flops import FlopsMeter
from liver_slurm.config.schema import CheckpointSection
from liver_slurm.engine.api import StepFlags, StepResult
from liver_slurm.parallel.layout import Layout
from liver_slurm.rundir.metrics import read_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.worker.train_loop import TrainLoop


@pytest.fixture
def training(tmp_path: Path) -> TrainLoop:
    config = job(tmp_path, checkpoint=CheckpointSection(at_end=False))
    training = TrainLoop("live-0", config, RunDir(tmp_path), SimpleNamespace())  # type: ignore[arg-type]
    world = SimpleNamespace(
        rank=0,
        is_last_stage=False,
        place=SimpleNamespace(tp=0),
        replica=0,
        layout=Layout(1, 2, 1),
        membership=SimpleNamespace(generation=3),
    )
    training.live = SimpleNamespace(world=world)  # type: ignore[assignment]
    return training


def test_metrics_say_how_fast_the_step_was(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    training = TrainLoop("live-0", job(tmp_path), run_dir, SimpleNamespace())  # type: ignore[arg-type]
    world = SimpleNamespace(
        is_last_stage=True,
        place=SimpleNamespace(tp=0),
        replica=0,
        layout=Layout(2, 1, 1),
        membership=SimpleNamespace(generation=3),
    )
    training.live = SimpleNamespace(world=world)  # type: ignore[assignment]
    flags = StepFlags(stop=False)
    result = StepResult(0, 1.0, 1.0, 1.0, 5000, skipped=False, start=10.0, end=10.5, flags=flags)
    training.completed(result)
    training.meter = FlopsMeter(token_flops=1e9, peak_tflops=10.0)
    training.completed(replace(result, step=1))
    training.flush(PATIENCE)
    first, second = read_metrics(run_dir.metrics)
    assert (first.tokens_per_s, first.tflops, first.mfu) == (10_000.0, None, None)
    assert (second.tokens_per_s, second.tflops, second.mfu) == (10_000.0, 5.0, 0.5)


def test_mirrors_begin_when_all_members_were_ready(training: TrainLoop) -> None:
    told: list[int] = []
    asked: list[StepFlags] = []
    mirrors = SimpleNamespace(ready=False, all_ready=lambda: told.append(training.step), seconds=0.0)
    training.samples, training.mirrors = object(), mirrors  # type: ignore[assignment]
    live: Any = training.live
    live.world.rank = 1
    live.train_step = lambda _samples, _step, flags, _gate: asked.append(flags)
    another: Any = SimpleNamespace(world=live.world, train_step=live.train_step)
    training.train(live, 1, stop=False)
    mirrors.ready = True
    training.train(live, 1, stop=False)
    training.train(another, 1, stop=False)
    assert [flags.unready for flags in asked] == [True, False, True], "a new world's are not those of the live one"
    for step, unready in ((5, True), (6, False)):
        flags = StepFlags(unready=unready)
        training.completed(StepResult(step, 1.0, 1.0, 1.0, 1, skipped=False, start=0.0, end=1.0, flags=flags))
    assert told == [7]


def test_steps_that_change_nothing_end_the_run_after_so_many(training: TrainLoop) -> None:
    training._config = replace(training._config, train=replace(training._config.train, most_skipped=3))
    training._control.beat = lambda: None  # type: ignore[method-assign]

    def step(number: int, loss: float = 1.0, skipped: bool = False) -> None:
        flags = StepFlags(stop=False)
        training.completed(StepResult(number, loss, 1.0, 1.0, 1, skipped=skipped, start=0.0, end=1.0, flags=flags))

    step(100, skipped=True)
    step(101, loss=float("nan"))
    assert training.in_vain == 2
    step(102)
    assert training.in_vain == 0
    step(104, skipped=True)
    step(105, skipped=True)
    with pytest.raises(LiverError, match="the last 3 steps changed nothing"):
        step(106, skipped=True)
