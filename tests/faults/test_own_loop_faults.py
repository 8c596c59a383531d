"""A training loop of one's own when workers die or the run is resumed: the losses are those of plain PyTorch."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paced_loop
import pytest
from worker_lab import STARTUP, WorkerLab, job

from liver_slurm.config.schema import CheckpointSection, DataSection, JobConfig, RecoverySection, StreamSection

pytestmark = pytest.mark.slow

Make = Callable[..., WorkerLab]


def config_of(folder: Path, kind: str, live: int, layouts: tuple[str, ...], **changes: Any) -> JobConfig:
    """A job of one of the loops of ``paced_loop``."""
    config = job(folder, live=live, steps=60)
    train = replace(config.train, loop=f"paced_loop:{kind}", distributed_optimizer=False)
    return replace(
        config,
        train=train,
        data=DataSection(),
        stream=StreamSection(mode="pause"),
        recovery=RecoverySection(mirror="off"),
        elastic=replace(config.elastic, layouts=layouts),
        **changes,
    )


@pytest.fixture
def begin() -> Iterator[Make]:
    """``begin(config)``: a run that has begun, at a slow pace until it is told to finish."""
    labs: list[WorkerLab] = []

    def make(config: JobConfig, resume: WorkerLab | None = None) -> WorkerLab:
        labs.append(WorkerLab(config, resume))
        labs[-1].slow.touch()
        labs[-1].begin()
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()


def kill(run: WorkerLab, name: str) -> dict[str, Any]:
    """SIGKILL, of which nobody tells the coordinator; returns what it plans to do."""
    before = len(run.events("recovery_planned"))
    os.kill(run.pid(name), signal.SIGKILL)
    run.killed.add(name)
    run.wait_event("recovery_planned", before + 1, STARTUP)
    return run.events("recovery_planned")[before]


def assert_undisturbed(losses: dict[int, float], config: JobConfig) -> None:
    assert config.train.loop is not None
    expected = paced_loop.undisturbed(config, config.train.loop.partition(":")[2])
    assert losses == {step: pytest.approx(expected[step], rel=2e-6) for step in losses}


def test_replicas_go_on_without_one_that_died(tmp_path: Path, begin: Make) -> None:
    # LS-1, LS-4, LS-34
    config = config_of(tmp_path, "replicated", 3, ("tp1pp1dp1", "tp1pp1dp2", "tp1pp1dp3"))
    run = begin(config)
    run.wait_step(4)
    assert kill(run, "live-1")["state_from"] == "survivors"
    run.committed_to("tp1pp1dp2")
    run.wait_step(run.status()["step"] + 2)
    kill(run, "live-0")
    run.committed_to("tp1pp1dp1")
    losses = run.finish()
    assert [*losses] == [*range(1, 61)]
    assert_undisturbed(losses, config)


def test_divided_state_comes_from_the_other_replica(tmp_path: Path, begin: Make) -> None:
    config = config_of(tmp_path, "divided", 4, ("tp2pp1dp2", "tp3pp1dp1"))
    run = begin(replace(config, checkpoint=CheckpointSection(every=0, at_end=False)))
    run.wait_step(4)
    assert kill(run, "live-2")["state_from"] == "survivors"
    run.committed_to("tp3pp1dp1")
    assert_undisturbed(run.finish(), config)


def test_divided_state_without_a_replica_comes_from_a_checkpoint(tmp_path: Path, begin: Make) -> None:
    saved = CheckpointSection(every=4, at_end=False)
    config = config_of(tmp_path, "divided", 3, ("tp3pp1dp1", "tp2pp1dp1"), checkpoint=saved)
    run = begin(config)
    run.wait_event("checkpoint_written", 1, STARTUP)
    planned = kill(run, "live-1")
    assert (planned["state_from"], planned["step"] % 4) == ("checkpoint", 0)
    run.committed_to("tp2pp1dp1")
    assert_undisturbed(run.finish(), config)


@pytest.mark.parametrize(("kind", "first", "then"), [("replicated", "dp2", "dp3"), ("divided", "tp2", "tp3")])
def test_a_run_is_resumed_in_another_layout(tmp_path: Path, begin: Make, kind: str, first: str, then: str) -> None:
    def layout(text: str) -> str:
        return f"tp1pp1{text}" if text.startswith("dp") else f"{text}pp1dp1"

    config = config_of(tmp_path / "first", kind, 2, (layout(first),), checkpoint=CheckpointSection(every=0))
    begun = begin(replace(config, train=replace(config.train, steps=10)))
    assert [*begun.finish()] == [*range(1, 11)]
    config = config_of(tmp_path / "then", kind, 3, (layout(then),))
    losses = begin(replace(config, train=replace(config.train, steps=20)), begun).finish()
    assert [*losses] == [*range(11, 21)]
    assert_undisturbed(losses, replace(config, train=replace(config.train, steps=20)))


@pytest.mark.parametrize(
    ("kind", "first", "grown"),
    [("replicated", "dp2", "dp3"), pytest.param("divided", "tp2", "tp3", marks=pytest.mark.long)],
)
def test_joiners_that_die_or_send_other_bytes_change_nothing(
    tmp_path: Path, begin: Make, kind: str, first: str, grown: str
) -> None:
    # LS-7
    layouts = tuple(f"tp1pp1{text}" if text.startswith("dp") else f"{text}pp1dp1" for text in (first, grown))
    config = config_of(tmp_path, kind, 2, layouts, checkpoint=CheckpointSection(every=0, at_end=False))
    run = begin(config)
    run.committed_to(layouts[0])
    for number, point in enumerate(("prepare", "stream")):
        name = f"standby-{point}"
        run.real_worker(name, f"kill@{point}")
        run.report_end(name)
        run.wait_event("reconfiguration_aborted", number + 1, STARTUP)
    leaver = run.real_worker("standby-c", "corrupt@received")
    reason = str(run.wait_event("reconfiguration_aborted", 3, STARTUP)["reason"])
    assert "the digest of what arrived differs" in reason
    run.notice("standby-c")
    assert leaver.wait(timeout=STARTUP) == 0
    assert not run.events("reconfiguration_committed")
    run.real_worker("standby-d")
    run.committed_to(layouts[1])
    run.notice("standby-d")
    run.committed_to(layouts[0])
    losses = run.finish()
    assert [*losses] == [*range(1, config.train.steps + 1)]
    assert_undisturbed(losses, config)
