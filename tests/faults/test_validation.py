"""Validation losses of a run whose world changes equal those of one undisturbed: at the same steps, without a hole."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from coordinator_lab import until
from worker_lab import STARTUP, WorkerLab, job

from liver_slurm.config.schema import CheckpointSection, DataSection, JobConfig
from liver_slurm.config.validation import ValidationSection
from liver_slurm.rundir.checkpoints import list_checkpoints
from liver_slurm.rundir.validation import ValidationMetrics, read_validations

pytestmark = pytest.mark.slow

EVERY, STEPS, SAMPLES = 5, 100, 240
"""A validation goes through 20 batches: while the run is slow, it takes seconds. There are steps enough for a machine
on which the worker that joins takes minutes to start."""
LAYOUTS = ("tp1pp1dp1", "tp1pp1dp2", "tp1pp1dp3")
Make = Callable[..., WorkerLab]


def config_of(folder: Path, **changes: Any) -> JobConfig:
    config = job(folder, steps=STEPS)
    paced = "paced_samples:provide"
    return replace(
        config,
        data=DataSection(provider=paced),
        validation=replace(ValidationSection(provider=paced, every=EVERY, samples=SAMPLES), **changes),
        elastic=replace(config.elastic, layouts=LAYOUTS, initial="tp1pp1dp2"),
        checkpoint=CheckpointSection(every=0, at_end=False),
        stream=replace(
            config.stream, mode="pause"
        ),  # with overlap there is a step to train before, where there is time
    )


@pytest.fixture
def make() -> Iterator[Make]:
    """``make(config)``: a run that has begun, at a slow pace until it is told to finish."""
    with ExitStack() as labs:

        def begin(config: JobConfig) -> WorkerLab:
            run = labs.enter_context(closing(WorkerLab(config)))
            run.slow.touch()
            run.begin()
            return run

        yield begin


def validations(run: WorkerLab) -> dict[int, ValidationMetrics]:
    lines = list(read_validations(run.run_dir.validations))
    assert len({line.step for line in lines}) == len(lines), "each once"
    return {line.step: line for line in lines}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, float]]:
    """Validation losses of the run that nothing happens to."""
    with closing(WorkerLab(config_of(tmp_path_factory.mktemp("undisturbed")))) as lab:
        lab.begin()
        lab.finish()
        yield {step: line.loss for step, line in validations(lab).items()}


def validating(run: WorkerLab, after: int = 0) -> int:
    """Wait until training stands for a validation that comes later than ``after``, and begins; returns its step."""

    def there() -> int:
        status = run.status()
        begun = 0 < status.get("validating", [0])[0] < SAMPLES / 2
        return int(status["step"]) if begun and status["step"] > after else 0

    return until(there, f"a validation after step {after}", STARTUP)


def test_the_world_changes_in_its_midst(tmp_path: Path, make: Make, undisturbed: dict[int, float]) -> None:
    """A notice, a death: each comes while training stands for a validation, and is served there."""
    run = make(config_of(tmp_path))
    run.real_worker("standby-a")
    run.committed_to("tp1pp1dp3")
    noticed = validating(run)
    run.notice("standby-a")
    run.committed_to("tp1pp1dp2")
    killed = validating(run, noticed)
    os.kill(run.pid("live-1"), signal.SIGKILL)
    run.killed.add("live-1")
    run.wait_event("recovery_planned", 1, STARTUP)
    run.finish()
    changes = {
        event["cause"]: (event["to"], event["cutover_step"]) for event in run.events("reconfiguration_committed")
    }
    del changes["capacity"]
    assert changes == {"notice": ("tp1pp1dp2", noticed), "loss": ("tp1pp1dp1", killed)}
    found = validations(run)
    assert {step: line.loss for step, line in found.items()} == {
        step: pytest.approx(loss, rel=1e-6) for step, loss in undisturbed.items()
    }
    assert all((line.samples, line.tokens) == (SAMPLES, SAMPLES * 16) for line in found.values())


def test_it_ends_a_run_that_becomes_no_better(tmp_path: Path, make: Make) -> None:
    config = config_of(tmp_path, patience=1, keep_best=True, samples=24)
    # Each update throws the state off.
    run = make(replace(config, train=replace(config.train, lr=50.0), checkpoint=CheckpointSection(keep=1, every=4)))
    run.finish()
    found = validations(run)
    best = min(found.values(), key=lambda line: line.loss).step
    assert max(found) < STEPS
    assert max(found) == best + EVERY
    (ended,) = run.events("run_ended")
    assert ended["outcome"] == "finished"
    assert ended["reason"] == f"the validation loss is not below that of step {best} after 1 more"
    kept = [int(path.name.removeprefix("step-")) for path in list_checkpoints(run.run_dir.checkpoints)]
    assert best in kept
    assert len(kept) == 2
