"""When a worker writes checkpoints, and what it says of a step; nothing is trained here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from worker_lab import job

from liver_slurm.base.flops import FlopsMeter
from liver_slurm.config.schema import CheckpointSection
from liver_slurm.engine.api import StepFlags, StepResult
from liver_slurm.parallel.layout import Layout
from liver_slurm.rundir.metrics import read_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.worker.train_loop import TrainLoop

EVERY = 4


class Slow:
    """A checkpointer that is never done; another save would wait for it for ever."""

    def __init__(self) -> None:
        self.saved: list[int] = []

    def save(self, step: int, done: Any) -> None:
        self.saved.append(step)


@pytest.fixture
def training(tmp_path: Path) -> TrainLoop:
    config = job(tmp_path, checkpoint=CheckpointSection(every=EVERY, at_end=False))
    training = TrainLoop("live-0", config, RunDir(tmp_path), SimpleNamespace(run_soon=lambda work: None))  # type: ignore[arg-type]
    training.live = SimpleNamespace(world=SimpleNamespace(rank=0, is_last_stage=False))  # type: ignore[assignment]
    training._checkpointer = Slow()  # type: ignore[assignment]
    return training


def trained(training: TrainLoop, step: int, saving: bool = False, due: bool = False) -> None:
    """The step before ``step`` is made; ``saving``, ``due``: what its members said of checkpoints."""
    flags = StepFlags(stop=False, save=due, saving=saving)
    training.completed(StepResult(step - 1, 1.0, 1.0, 1.0, 1, skipped=False, start=0.0, end=1.0, flags=flags))


def saved(training: TrainLoop) -> list[int]:
    return training._checkpointer.saved  # type: ignore[union-attr, no-any-return]


def test_metrics_say_how_fast_the_step_was(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    training = TrainLoop("live-0", job(tmp_path), run_dir, SimpleNamespace(run_soon=lambda work: work()))  # type: ignore[arg-type]
    world = SimpleNamespace(
        is_last_stage=True,
        place=SimpleNamespace(tp=0, dp=0),
        layout=Layout(2, 1, 1),
        membership=SimpleNamespace(generation=3),
    )
    training.live = SimpleNamespace(world=world)  # type: ignore[assignment]
    flags = StepFlags(stop=False)
    result = StepResult(0, 1.0, 1.0, 1.0, 5000, skipped=False, start=10.0, end=10.5, flags=flags)
    training.completed(result)
    training.meter = FlopsMeter(token_flops=1e9, peak_tflops=10.0)
    training.completed(replace(result, step=1))
    first, second = read_metrics(run_dir.metrics)
    assert (first.tokens_per_s, first.tflops, first.mfu) == (10_000.0, None, None)
    assert (second.tokens_per_s, second.tflops, second.mfu) == (10_000.0, 5.0, 0.5)


def test_one_that_is_asked_for_at_a_step_with_one_of_its_own_is_that_one(training: TrainLoop) -> None:
    trained(training, EVERY)
    assert saved(training) == [EVERY]
    training.checkpoint()
    assert saved(training) == [EVERY]
    assert not training._due, "nothing is left to be made up for"


def test_one_that_is_asked_for_while_another_is_written_comes_after_it(training: TrainLoop) -> None:
    trained(training, EVERY)
    trained(training, EVERY + 1, saving=True)
    training.checkpoint()
    assert saved(training) == [EVERY]
    trained(training, EVERY + 2, saving=True, due=True)
    assert saved(training) == [EVERY]
    trained(training, EVERY + 3, due=True)
    assert saved(training) == [EVERY, EVERY + 3]
