"""A coordinator that goes and does not come back: its workers save what they have reached, at one step, and leave."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_files import counters
from coordinator_lab import until
from worker_lab import STARTUP, WorkerLab, job

from liver_slurm.config.schema import CheckpointSection, JobConfig
from liver_slurm.rundir.checkpoints import list_checkpoints

ORPHAN_TIMEOUT, STEPS = 3.0, 40


def config(folder: Path) -> JobConfig:
    """No layout but that of the live workers, so that a standby waits."""
    plain = job(folder, STEPS)
    return replace(
        plain,
        job=replace(plain.job, orphan_timeout=ORPHAN_TIMEOUT),
        elastic=replace(plain.elastic, layouts=("tp1pp1dp2",)),
        checkpoint=CheckpointSection(every=0, at_end=False),
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    lab = WorkerLab(job(tmp_path_factory.mktemp("undisturbed"), STEPS))
    try:
        lab.begin()
        return lab.finish()
    finally:
        lab.close()


def resume(first: WorkerLab) -> dict[int, float]:
    """Go on from the only checkpoint of a run that was left alone, to the end; losses of all steps of both runs."""
    (saved,) = list_checkpoints(first.run_dir.checkpoints)
    step = counters(saved)["step"]
    before = first.losses()
    assert list(before) == list(range(1, step + 1)), "what was trained was saved"
    second = WorkerLab(first.config, resume=first)
    try:
        second.begin()
        after = second.finish()
    finally:
        second.close()
    assert list(after) == list(range(step + 1, first.config.train.steps + 1))
    return {**before, **after}


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGSTOP, id="stopped", marks=pytest.mark.long),
    ],
)
def test_orphaned_workers_save_one_step_and_a_resumed_run_goes_on(
    number: signal.Signals, tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    # LS-14
    run = WorkerLab(config(tmp_path))
    try:
        run.slow.touch()
        run.begin()
        run.real_worker("standby-a")
        run.wait_event("standby_ready", timeout=STARTUP)
        run.wait_step(2)
        run.processes["coordinator"].send_signal(number)
        for name in ("live-0", "live-1", "standby-a"):
            assert run.processes[name].wait(timeout=STARTUP) == 0, f"{name} leaves by itself"
    finally:
        run.close()
    run.slow.unlink()
    assert resume(run) == undisturbed


def test_orphaned_workers_that_stand_at_a_boundary_do_not_wait_for_ever(
    tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    run = WorkerLab(config(tmp_path))
    try:
        run.begin("--resize", "5:tp1pp1dp3")
        run.wait_step(5)
        run.kill("coordinator")
        for name in ("live-0", "live-1"):
            assert run.processes[name].wait(timeout=STARTUP) == 0, f"{name} leaves by itself"
    finally:
        run.close()
    assert resume(run) == undisturbed


@pytest.mark.slow
def test_orphaned_workers_that_wait_for_a_commit_go_back_to_the_old_world(
    tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    run = WorkerLab(config(tmp_path))
    try:
        run.coordinator("--resize", "5:tp2pp1dp1")
        run.real_worker("live-0")
        run.real_worker("live-1", "delay@streamed:3")
        until(lambda: run.status().get("phase") == "stream", "state is streamed", STARTUP)
        run.kill("coordinator")
        for name in ("live-0", "live-1"):
            assert run.processes[name].wait(timeout=STARTUP) == 0, f"{name} leaves by itself"
    finally:
        run.close()
    assert resume(run) == undisturbed
