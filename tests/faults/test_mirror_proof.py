"""A keeper's copy goes wrong in a real run: a proof finds it, it is made anew, and a later death finds it right."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from coordinator_lab import until
from worker_lab import STARTUP, WorkerLab, job

from liver_slurm.config.schema import CheckpointSection, JobConfig
from liver_slurm.transfer.mirror.proof import EVERY

pytestmark = pytest.mark.slow

LAYOUT = "tp1pp1dp2"
AT = 3
"""Updates that are replayed as they are to be before one is not."""


def config_of(folder: Path) -> JobConfig:
    """Two workers with the distributed optimizer: each keeps the other's share."""
    folder.mkdir()
    config = job(folder)
    return replace(
        config,
        train=replace(config.train, distributed_optimizer=True),
        elastic=replace(config.elastic, layouts=(LAYOUT,), initial=LAYOUT),
        checkpoint=CheckpointSection(every=0, at_end=False),
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, float]]:
    """Losses of the run that nothing happens to, of which every proof holds."""
    with closing(WorkerLab(config_of(tmp_path_factory.mktemp("undisturbed") / "run"))) as lab:
        lab.slow.touch()
        lab.begin()
        until(lambda: min(proofs(lab)) >= 2, "each keeper has made two proofs", STARTUP)
        yield lab.finish()
        assert not lab.events("mirror_differed")


def proofs(run: WorkerLab) -> list[int]:
    """Proofs that each member has made of the mirror that it keeps."""
    return [worker.get("mirror_proofs", [0, 0])[0] for worker in run.status().get("workers", [])] or [0]


@pytest.mark.parametrize(
    "fault", ["corrupt", *(pytest.param(each, marks=pytest.mark.long) for each in ("ignore", "double"))]
)
def test_what_a_keeper_has_wrongly_is_never_used(fault: str, tmp_path: Path, undisturbed: dict[int, float]) -> None:
    """A bit of it flips, an update is lost, or made twice; then its owner dies, and its state is right all the same."""
    # LS-3, LS-4, LS-34
    with closing(WorkerLab(config_of(tmp_path / "run"))) as run:
        run.slow.touch()
        run.coordinator()
        run.real_worker("live-0", f"{fault}@replayed+{AT}")
        run.real_worker("live-1")
        differed = run.wait_event("mirror_differed", 1, STARTUP)
        assert (differed["worker"], differed["owner"], differed["differed"]) == ("live-0", "live-1", 1)
        assert differed["boxes"], "it says which"
        assert AT < differed["step"] <= AT + 1 + EVERY
        until(lambda: all(one["mirror"] == "whole" for one in run.status()["workers"]), "it is there again", STARTUP)
        run.real_worker("standby-a")
        run.wait_event("standby_ready", 1, STARTUP)
        os.kill(run.pid("live-1"), signal.SIGKILL)
        run.killed.add("live-1")
        planned = run.wait_event("recovery_planned", 1, STARTUP)
        assert (planned["state_from"], planned["mirrors"]) == ("mirrors", {"live-1": "live-0"})
        proven = planned["verified"]["live-1"]
        assert differed["step"] < proven <= planned["step"] <= proven + EVERY
        assert f"live-0 mirrors live-1, verified at step {proven} and used at {planned['step']}" in planned["reason"]
        run.committed_to(LAYOUT)
        assert run.finish() == undisturbed
        assert len(run.events("mirror_differed")) == 1
