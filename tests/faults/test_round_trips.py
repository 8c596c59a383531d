"""There and back at one step, through a real coordinator and real workers: what goes on is what would have without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from checkpoint_files import assert_same, newest
from worker_lab import WorkerLab, job

from liver_slurm.config.schema import CheckpointSection, JobConfig, StreamSection

STEPS, AT = 16, 8
SAVED = CheckpointSection(at_end=True)


def trained(
    config: JobConfig, *resizes: str, standbys: int = 0
) -> tuple[dict[int, float], Path, list[tuple[int, str]]]:
    """Losses, last checkpoint, and (step, layout) of each resize of a run."""
    lab = WorkerLab(replace(config, checkpoint=SAVED))
    try:
        lab.begin(*(part for text in resizes for part in ("--resize", text)))
        for index in range(standbys):
            lab.real_worker(f"standby-{index}")
        losses = lab.finish()
        committed = [(event["cutover_step"], event["to"]) for event in lab.events("reconfiguration_committed")]
        return losses, newest(lab.run_dir.checkpoints), committed
    finally:
        lab.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, float], Path]:
    losses, checkpoint, _ = trained(job(tmp_path_factory.mktemp("undisturbed"), steps=STEPS))
    return losses, checkpoint


NEAR, FAR = ("tp2pp1dp1", "tp1pp1dp2"), ("tp1pp1dp4", "tp1pp2dp2", "tp1pp1dp2")
LONG = ("tp1cp2pp1dp1", "tp1cp2pp1dp2", "tp2cp2pp1dp1", "tp1cp2pp2dp1", "tp1pp1dp2")
"""With context parallelism."""


@pytest.mark.parametrize(
    ("layouts", "mode", "transport"),
    [
        (NEAR, "pause", "auto"),
        (FAR, "overlap", "auto"),
        (LONG, "overlap", "auto"),
        *(
            pytest.param(*each, "auto", marks=pytest.mark.long)
            for each in ((NEAR, "overlap"), (FAR, "pause"), (LONG, "pause"))
        ),
        *(pytest.param(*each, "ucx", marks=pytest.mark.ucx) for each in ((NEAR, "pause"), (FAR, "overlap"))),
    ],
    ids=str,
)
def test_a_round_trip_at_one_step_is_bitwise(
    layouts: tuple[str, ...],
    mode: Literal["overlap", "pause"],
    transport: Literal["auto", "ucx"],
    tmp_path: Path,
    undisturbed: tuple[dict[int, float], Path],
) -> None:
    # LS-3, LS-4
    standbys = 0 if layouts is NEAR else 2
    losses, checkpoint, committed = trained(
        job(tmp_path, steps=STEPS, stream=StreamSection(mode=mode, transport=transport)),
        *(f"{AT}:{layout}" for layout in layouts),
        standbys=standbys,
    )
    assert committed == [(AT, layout) for layout in layouts]
    assert losses == undisturbed[0]
    assert_same(checkpoint, undisturbed[1])


def test_every_layout_trains_alike(tmp_path: Path, undisturbed: tuple[dict[int, float], Path]) -> None:
    resizes = [f"{2 * number + 2}:{layout}" for number, layout in enumerate((*LONG, "tp2pp1dp1"))]
    losses, _, committed = trained(job(tmp_path, steps=STEPS), *resizes, standbys=2)
    assert [layout for _, layout in committed] == [*LONG, "tp2pp1dp1"]
    assert losses == {step: pytest.approx(loss, rel=1e-6) for step, loss in undisturbed[0].items()}
