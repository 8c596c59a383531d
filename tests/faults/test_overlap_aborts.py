"""A growth in mode overlap that fails, wherever it is by then: the live world goes on as if nothing had been tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_files import assert_same, newest
from worker_lab import STARTUP, WorkerLab, job

from liver_slurm.config.schema import CheckpointSection, JobConfig

STEPS = 40


def config_in(folder: Path) -> JobConfig:
    return job(folder, steps=STEPS, checkpoint=CheckpointSection(at_end=True))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerLab]:
    lab = WorkerLab(config_in(tmp_path_factory.mktemp("undisturbed")))
    lab.begin()
    lab.finish()
    yield lab
    lab.close()


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[WorkerLab]:
    """A run at a slow pace; the parameter is a fault of a live worker."""
    config = config_in(tmp_path)
    lab = WorkerLab(replace(config, job=replace(config.job, prepare_timeout=15.0)))
    lab.slow.touch()
    lab.coordinator()
    lab.real_worker("live-0")
    lab.real_worker("live-1", getattr(request, "param", ""))
    lab.committed_to("tp1pp1dp2")
    yield lab
    lab.close()


def assert_as_if_nothing_had_been_tried(run: WorkerLab, undisturbed: WorkerLab) -> None:
    assert run.finish() == undisturbed.losses()
    assert_same(newest(run.run_dir.checkpoints), newest(undisturbed.run_dir.checkpoints))
    assert not run.events("reconfiguration_committed")


@pytest.mark.parametrize(
    ("point", "run"),
    [
        pytest.param("received", "", id="while state arrives and training runs"),
        # A live worker's vote is late, so that there is no commit yet.
        pytest.param("first_step", "delay@streamed:5", id="in the new world's first pass"),
        pytest.param("streamed", "", id="before its vote"),
    ],
    indirect=["run"],
)
def test_a_joiner_dies(point: str, run: WorkerLab, undisturbed: WorkerLab) -> None:
    run.real_worker("standby-a", f"kill@{point}")
    run.report_end("standby-a")
    reason = str(run.wait_event("reconfiguration_aborted", 1, STARTUP)["reason"])
    assert "standby-a was lost" in reason or "could not stream" in reason, reason
    assert_as_if_nothing_had_been_tried(run, undisturbed)


def test_a_digest_differs(run: WorkerLab, undisturbed: WorkerLab) -> None:
    joiner = run.real_worker("standby-a", "corrupt@received")
    reason = str(run.wait_event("reconfiguration_aborted", 1, STARTUP)["reason"])
    assert "the digest of what arrived differs" in reason
    run.notice("standby-a")
    assert joiner.wait(timeout=STARTUP) == 0
    assert_as_if_nothing_had_been_tried(run, undisturbed)


def test_the_time_is_up_when_all_but_one_wait_for_the_commit(run: WorkerLab, undisturbed: WorkerLab) -> None:
    joiner = run.real_worker("standby-a", "delay@streamed:600")
    reason = str(run.wait_event("reconfiguration_aborted", 1, STARTUP)["reason"])
    assert "still missing: standby-a" in reason
    run.notice("standby-a")
    assert joiner.wait(timeout=STARTUP) == 0
    assert_as_if_nothing_had_been_tried(run, undisturbed)
