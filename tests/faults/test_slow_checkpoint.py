"""A checkpoint that is written for ever: training does not wait for it, and nor does a deadline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from worker_lab import STARTUP, WorkerLab, job

from liver_slurm.config.schema import CheckpointSection
from liver_slurm.protocol.messages import CheckpointRequest

EVERY, GRACE = 4, 15.0


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[WorkerLab]:
    config = job(tmp_path)
    config = replace(
        config,
        standby=replace(config.standby, grace=GRACE),
        checkpoint=CheckpointSection(every=EVERY, at_end=False),
    )
    with closing(WorkerLab(config)) as run:
        run.slow.touch()
        run.begin()
        yield run


@pytest.mark.slow
def test_a_deadline_comes_before_a_checkpoint(lab: WorkerLab, tmp_path: Path) -> None:
    leaver = lab.real_worker("standby-a", "delay@save:600")
    lab.committed_to("tp1pp1dp3")
    begun = lab.status()["step"]
    assert lab.ask(CheckpointRequest()).ok
    lab.wait_step(begun + 3 * EVERY)  # several are due by now, the first is still being written
    saved = [event["step"] for event in lab.events("checkpoint_written")]
    assert all(step <= begun for step in saved)

    lab.notice("standby-a")
    assert leaver.wait(timeout=STARTUP) == 0
    lab.committed_to("tp1pp1dp2")
    (notice,) = lab.events("notice")
    (left,) = [event for event in lab.events("worker_left") if event["worker"] == "standby-a"]
    assert left["time"] <= notice["deadline"]
    lab.wait_event("checkpoint_failed", timeout=STARTUP)
    lab.wait_event("checkpoint_written", len(saved) + 1, STARTUP)  # what was due comes now

    with closing(WorkerLab(job(tmp_path / "undisturbed"))) as undisturbed:
        undisturbed.begin()
        expected = undisturbed.finish()
    assert lab.finish() == {step: pytest.approx(loss, rel=1e-6) for step, loss in expected.items()}
