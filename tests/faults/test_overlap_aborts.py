"""A growth in mode overlap that fails, wherever it is by then: the live world goes on as if nothing had been tried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_files import assert_same, newest
from worker_lab import STARTUP, WorkerLab, job

from liver_slurm.config.schema import CheckpointSection, JobConfig

pytestmark = pytest.mark.slow

STEPS = 90
"""Those after the fortieth take long until the last growth has failed."""


def config_in(folder: Path) -> JobConfig:
    return job(folder, steps=STEPS, checkpoint=CheckpointSection(at_end=True))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerLab]:
    with closing(WorkerLab(config_in(tmp_path_factory.mktemp("undisturbed")))) as lab:
        lab.begin()
        lab.finish()
        yield lab


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[WorkerLab]:
    """A run at a slow pace; the parameter is a fault of a live worker."""
    config = config_in(tmp_path)
    with closing(WorkerLab(replace(config, job=replace(config.job, prepare_timeout=15.0)))) as lab:
        lab.slow.touch()
        lab.coordinator()
        lab.real_worker("live-0")
        lab.real_worker("live-1", getattr(request, "param", ""))
        lab.committed_to("tp1pp1dp2")
        yield lab


def aborted(run: WorkerLab, count: int) -> str:
    """Why the growth with this number was given up."""
    return str(run.wait_event("reconfiguration_aborted", count, STARTUP)["reason"])


def assert_as_if_nothing_had_been_tried(run: WorkerLab, undisturbed: WorkerLab) -> None:
    assert run.finish() == undisturbed.losses()
    assert_same(newest(run.run_dir.checkpoints), newest(undisturbed.run_dir.checkpoints))
    assert not run.events("reconfiguration_committed")


@pytest.mark.long
def test_one_joiner_after_the_other_fails(run: WorkerLab, undisturbed: WorkerLab) -> None:
    # LS-7
    # While state arrives and training runs; before its vote.
    for count, (name, point) in enumerate([("standby-a", "received"), ("standby-b", "streamed")], start=1):
        run.real_worker(name, f"kill@{point}")
        run.report_end(name)
        reason = aborted(run, count)
        assert f"{name} was lost" in reason or "could not stream" in reason, reason
    for count, (name, fault, expected) in enumerate(
        [
            ("standby-c", "corrupt@received", "the digest of what arrived differs"),
            # All but one wait for the commit when the time is up.
            ("standby-d", "delay@streamed:600", "still missing: standby-d"),
        ],
        start=3,
    ):
        joiner = run.real_worker(name, fault)
        assert expected in aborted(run, count)
        run.notice(name)
        assert joiner.wait(timeout=STARTUP) == 0
    assert len(run.events("reconfiguration_aborted")) == 4
    assert_as_if_nothing_had_been_tried(run, undisturbed)


@pytest.mark.parametrize("run", ["delay@streamed:5"], indirect=True)
def test_a_joiner_dies_in_the_new_worlds_first_pass(run: WorkerLab, undisturbed: WorkerLab) -> None:
    """A live worker's vote is late, so that there is no commit yet."""
    run.real_worker("standby-a", "kill@first_step")
    run.report_end("standby-a")
    reason = aborted(run, 1)
    assert "standby-a was lost" in reason or "could not stream" in reason, reason
    assert_as_if_nothing_had_been_tried(run, undisturbed)
