"""Ten ways in which a new world's state could be another than the old one's: none gets past the commit.

Each joiner does one to what it would train with. The growth is given up with a reason that says what was found, and
training goes on as if nothing had been tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import paced_samples
import pytest
from checkpoint_files import assert_same, newest
from coordinator_lab import until
from worker_lab import STARTUP, WorkerLab, job
from worker_nursery import Nursery

from liver_slurm.base.faults import Defect
from liver_slurm.config.schema import CheckpointSection, JobConfig, StreamSection

DIGEST = "the digest of what arrived differs from the digest of what was sent"
FOUND = {
    Defect.UNLOADED: ("received", DIGEST),
    Defect.CORRUPT: ("received", DIGEST),
    Defect.PERMUTED: ("received", DIGEST),
    Defect.SWAPPED: ("received", DIGEST),
    Defect.STALE: ("received", "@exp_avg at"),
    Defect.CAST: ("received", DIGEST),
    Defect.STEP_RESET: ("updates", "the optimizer's step"),
    Defect.DROPPED: ("plan", "which the new world needs here, not all comes from somewhere"),
    Defect.WRONG_EXPERT: ("plan", "a peer has another box where the plan says decoder"),
    Defect.WRONG_POSITION: ("position", "would go on with the samples of step"),
}
"""Where each is done, and what the reason says."""
STEPS = 200


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with closing(Nursery()) as one:
        yield one


class Lab(WorkerLab):
    """A run whose workers come from a nursery."""

    def __init__(self, config: JobConfig, nursery: Nursery) -> None:
        super().__init__(config)
        self._nursery = nursery
        paced_samples.pace(config.job.run_root, 0.2, share=0.04)  # however slow the machine is, steps do not run out

    def real_worker(self, name: str, fault: str = "") -> Any:
        environment = {"LIVER_FAULT": f"{fault}:{name}" if fault else ""}
        worker: Any = self._nursery.start(self.run_dir.path, name, environment)
        self.processes[name] = worker
        return worker


def config(folder: Path, mode: Literal["overlap", "pause"], distributed: bool) -> JobConfig:
    """A mixture of experts, in two replicas that may become three."""
    folder.mkdir()
    made = job(folder, steps=STEPS, stream=StreamSection(mode=mode), checkpoint=CheckpointSection(at_end=True))
    return replace(
        made,
        model=replace(made.model, num_query_groups=4, num_moe_experts=4, moe_ffn_hidden_size=24),
        train=replace(made.train, distributed_optimizer=distributed),
    )


def aborted(run: WorkerLab, joiner: str) -> str:
    """Why the first change with this joiner was given up; empty: none was."""
    reasons = (event["reason"] for event in run.events("reconfiguration_aborted") if joiner in event["joiners"])
    return str(next(reasons, ""))


@pytest.mark.long
@pytest.mark.parametrize("distributed", [True, False], ids=["distributed", "plain"])
@pytest.mark.parametrize("mode", ["overlap", "pause"])
def test_no_defect_gets_past_the_commit(
    mode: Literal["overlap", "pause"], distributed: bool, tmp_path: Path, nursery: Nursery
) -> None:
    # LS-7, LS-12
    with closing(Lab(config(tmp_path / "spoilt", mode, distributed), nursery)) as run:
        run.begin()
        run.committed_to("tp1pp1dp2")
        found = {}
        for defect, (point, _) in FOUND.items():
            name = f"standby-{defect.value}"
            joiner = run.real_worker(name, f"{defect.value}@{point}")
            found[defect] = until(lambda name=name: aborted(run, name), f"{name} is not taken", STARTUP)
            run.notice(name)
            assert joiner.wait(timeout=STARTUP) == 0
        assert {defect: says in found[defect] for defect, (_, says) in FOUND.items()} == dict.fromkeys(FOUND, True), (
            found
        )
        assert not run.events("reconfiguration_committed")
        losses = run.finish()
    with closing(Lab(config(tmp_path / "alone", mode, distributed), nursery)) as alone:
        alone.slow.unlink()
        alone.begin()
        assert losses == alone.finish()
    assert_same(newest(run.run_dir.checkpoints), newest(alone.run_dir.checkpoints))
