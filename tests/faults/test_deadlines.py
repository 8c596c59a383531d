"""A deadline before state could move beside training: it moves in the pause, and the leaver is gone in time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from paced_samples import LONG
from worker_lab import STARTUP, WorkerLab, job

from liver_slurm.config.schema import DataSection

GRACE = 2 * LONG + 1
"""Seconds. State that moves beside training needs the step that is being trained, one more, and a second in reserve."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[WorkerLab]:
    config = job(tmp_path, steps=30)
    config = replace(
        config,
        data=DataSection(provider="paced_samples:provide_slowly"),
        standby=replace(config.standby, grace=GRACE),
    )
    with closing(WorkerLab(config)) as run:
        run.slow.touch()
        run.begin()
        yield run


@pytest.mark.long
def test_what_a_deadline_cannot_wait_for_moves_in_the_pause(lab: WorkerLab, tmp_path: Path) -> None:
    leaver = lab.real_worker("standby-a")
    lab.committed_to("tp1pp1dp3")
    (grown,) = lab.events("reconfiguration_prepared")
    assert grown["stream_steps"] > 0
    reached = lab.status()["step"]
    # Its step time has to be known in the new world, as it is in a run that has trained there for a while.
    lab.wait_step(reached + 2)

    lab.notice("standby-a")
    assert leaver.wait(timeout=STARTUP) == 0
    lab.committed_to("tp1pp1dp2")
    (notice,) = lab.events("notice")
    _, shrunk = lab.events("reconfiguration_prepared")
    assert shrunk["stream_steps"] == 0
    assert "in the pause" in shrunk["reason"]
    assert "a worker is gone in" in shrunk["reason"]
    committed = lab.events("reconfiguration_committed")[-1]
    assert committed["cause"] == "notice"
    assert committed["bytes_moved"] > 0
    (left,) = [event for event in lab.events("worker_left") if event["worker"] == "standby-a"]
    assert left["time"] <= notice["deadline"]
    assert not lab.events("reconfiguration_aborted")

    with closing(WorkerLab(job(tmp_path / "undisturbed", steps=30))) as undisturbed:
        undisturbed.begin()
        expected = undisturbed.finish()
    losses = lab.finish()
    assert losses == {step: pytest.approx(expected[step], rel=1e-6) for step in losses}
    assert list(losses) == list(expected)
