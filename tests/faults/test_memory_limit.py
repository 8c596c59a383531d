"""A growth under ``stream.memory_limit``: within it, with one that cannot be met, and failing while it is made room."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_files import assert_same, newest
from worker_lab import STARTUP, WorkerLab, job

from liver_slurm.config.schema import CheckpointSection, ElasticSection, JobConfig, StreamSection
from liver_slurm.engine.megatron.spec import world_spec
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.messages import CancelRequest
from liver_slurm.reshard.memory_budget import ALL, Footprint, Share, footprint
from liver_slurm.rundir.metrics import read_metrics

pytestmark = pytest.mark.slow

STEPS = 60
STAGING = 1 << 15


def config_in(folder: Path, mode: str = "overlap") -> JobConfig:
    """One worker, and one that joins it as another tensor parallel rank."""
    config = job(
        folder,
        steps=STEPS,
        live=1,
        elastic=ElasticSection(layouts=("tp1pp1dp1", "tp2pp1dp1"), settle=0.2),
        checkpoint=CheckpointSection(at_end=True),
        stream=StreamSection(mode=mode, staging_bytes=STAGING),  # type: ignore[arg-type]
    )
    return replace(config, train=replace(config.train, global_batch_size=4))


def survivor(config: JobConfig) -> Footprint:
    """What the growth takes of the worker that is in both worlds, whichever its new rank is."""
    before, after = (world_spec(config, Layout(tp, 1, 1)).shards[0, 0] for tp in (1, 2))
    return footprint(Share(before, 1, 0, True), Share(after, 1, 0, True), STAGING)


def tight(config: JobConfig) -> int:
    """Room for what is in no layer and for the first layer, and not for the second."""
    limit = survivor(config).peak(2)
    assert limit < survivor(config).peak(3)
    return limit


def started(labs: list[WorkerLab], config: JobConfig, limit: int, fault: str = "") -> WorkerLab:
    """A run at a slow pace; ``fault`` is of the live worker."""
    lab = WorkerLab(replace(config, stream=replace(config.stream, memory_limit=limit)))
    labs.append(lab)
    lab.slow.touch()
    lab.coordinator()
    lab.real_worker("live-0", fault)
    lab.committed_to("tp1pp1dp1")
    return lab


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerLab]:
    with closing(WorkerLab(config_in(tmp_path_factory.mktemp("undisturbed")))) as lab:
        lab.begin()
        lab.finish()
        yield lab


@pytest.fixture
def labs() -> Iterator[list[WorkerLab]]:
    opened: list[WorkerLab] = []
    yield opened
    for lab in opened:
        lab.close()


def assert_as_if_nothing_had_been_tried(run: WorkerLab, undisturbed: WorkerLab) -> None:
    assert run.finish() == undisturbed.losses()
    assert_same(newest(run.run_dir.checkpoints), newest(undisturbed.run_dir.checkpoints))
    assert not run.events("reconfiguration_committed")


@pytest.mark.parametrize("mode", ["overlap", pytest.param("pause", marks=pytest.mark.long)])
def test_what_has_no_room_is_late(mode: str, labs: list[WorkerLab], tmp_path: Path, undisturbed: WorkerLab) -> None:
    # LS-23, LS-24
    config = config_in(tmp_path, mode)
    limit = tight(config)
    run = started(labs, config, limit)
    run.real_worker("standby-a")
    committed = run.wait_event("reconfiguration_committed", 1, STARTUP)
    assert committed["late_layers"] == 1
    assert committed["staging_peak_bytes"] <= STAGING
    assert STAGING < committed["state_peak_bytes"] <= limit
    losses = run.finish()
    assert losses == pytest.approx(undisturbed.losses(), rel=1e-6)


def test_in_mode_flat_the_worlds_never_meet(labs: list[WorkerLab], tmp_path: Path, undisturbed: WorkerLab) -> None:
    # LS-23, LS-24
    config = config_in(tmp_path, "flat")
    alone = max(
        footprint(None, Share(world_spec(config, Layout(tp, 1, 1)).shards[0, 0], 1, 0, True), STAGING).peak(ALL)
        for tp in (1, 2)
    )
    assert alone < survivor(config).peak(0), "else late layers would do"
    run = started(labs, config, alone)
    run.real_worker("standby-a")
    committed = run.wait_event("reconfiguration_committed", 1, STARTUP)
    assert committed["mode"] == "flat"
    assert int(str(committed["image_bytes"])) > 0
    assert int(str(committed["state_peak_bytes"])) <= alone
    assert run.finish() == pytest.approx(undisturbed.losses(), rel=1e-6)


@pytest.mark.parametrize("fault", ["fail@streamed", "corrupt@received"])
def test_in_mode_flat_a_failure_before_the_commit_costs_nothing(
    fault: str, labs: list[WorkerLab], tmp_path: Path, undisturbed: WorkerLab
) -> None:
    run = started(labs, config_in(tmp_path, "flat"), 1 << 30)
    joiner = run.real_worker("standby-a", fault)
    reason = str(run.wait_event("reconfiguration_aborted", 1, STARTUP)["reason"])
    assert "could not stream" in reason
    run.notice("standby-a")
    assert joiner.wait(timeout=STARTUP) == 0
    assert_as_if_nothing_had_been_tried(run, undisturbed)


def test_in_mode_flat_a_death_after_the_commit_loses_no_step(
    labs: list[WorkerLab], tmp_path: Path, undisturbed: WorkerLab
) -> None:
    config = config_in(tmp_path, "flat")
    config = replace(
        config,
        train=replace(config.train, distributed_optimizer=False),
        elastic=replace(config.elastic, layouts=("tp1pp1dp1", "tp1pp1dp2")),
    )
    run = started(labs, config, 1 << 30)
    joiner = run.real_worker("standby-a", "kill@settle")
    lost = run.wait_event("worker_lost", 1, STARTUP)
    assert lost["worker"] == "standby-a"
    assert joiner.wait(timeout=STARTUP) == -signal.SIGKILL
    run.killed.add("standby-a")
    planned = run.wait_event("recovery_planned", 1, STARTUP)
    assert (planned["to"], planned["state_from"], planned["redone"]) == ("tp1pp1dp1", "survivors", [])
    assert run.finish() == pytest.approx(undisturbed.losses(), rel=1e-6)


def test_a_limit_that_cannot_be_met(labs: list[WorkerLab], tmp_path: Path, undisturbed: WorkerLab) -> None:
    # LS-24
    config = config_in(tmp_path)
    least = survivor(config).peak(0)
    run = started(labs, config, least - 1)
    joiner = run.real_worker("standby-a")
    reason = str(run.wait_event("reconfiguration_aborted", 1, STARTUP)["reason"])
    assert "bytes are needed at least" in reason
    assert f"stream.memory_limit allows {least - 1}" in reason
    assert "\n" not in reason
    run.notice("standby-a")
    assert joiner.wait(timeout=STARTUP) == 0
    assert_as_if_nothing_had_been_tried(run, undisturbed)


def test_before_the_first_free_a_failure_costs_nothing(
    labs: list[WorkerLab], tmp_path: Path, undisturbed: WorkerLab
) -> None:
    config = config_in(tmp_path)
    run = started(labs, config, tight(config))
    joiner = run.real_worker("standby-a", "fail@streamed")
    reason = str(run.wait_event("reconfiguration_aborted", 1, STARTUP)["reason"])
    assert "could not stream" in reason
    run.notice("standby-a")
    assert joiner.wait(timeout=STARTUP) == 0
    assert_as_if_nothing_had_been_tried(run, undisturbed)


def test_after_the_first_free_a_failure_is_a_loss(labs: list[WorkerLab], tmp_path: Path) -> None:
    """No worker trains on with what is left of the old world's state."""
    config = config_in(tmp_path)
    run = started(labs, config, tight(config), "fail@freed")
    joiner = run.real_worker("standby-a")
    lost = run.wait_event("worker_lost", 1, STARTUP)
    assert "the old world's state was being freed" in str(lost["reason"])
    planned = run.wait_event("recovery_planned", 1, STARTUP)
    assert (planned["state_from"], planned["step"]) == ("start", 0), "there is no checkpoint yet"
    assert run.processes["live-0"].wait(timeout=STARTUP) != 0
    # The joiner is in the same transfer, and dies of it, before it has begun again or soon after: nobody is left.
    assert joiner.wait(timeout=STARTUP) != 0
    assert run.ask(CancelRequest()).ok
    assert run.processes["coordinator"].wait(timeout=STARTUP) == 3
    trained = list(read_metrics(run.run_dir.metrics))
    assert len({line.generation for line in trained}) <= 1, "what was trained before, or what was begun again"
    assert [line.step for line in trained] == list(range(1, len(trained) + 1))
