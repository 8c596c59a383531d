"""What a death cost, from a run's events and steps."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from liver_slurm.bench.recovery import Kill, measured, table
from liver_slurm.rundir.paths import RunDir

STEPS = [
    # step, generation, end
    *((step, 0, 100.0 + step) for step in range(1, 6)),
    *((step, 1, 105.0 + step) for step in range(5, 9)),
]


def run_of(folder: Path, planned: int) -> RunDir:
    """A run whose worker is killed at 105.5, after step 5; the next world begins with ``planned`` steps."""
    run_dir = RunDir(folder)
    events = [
        {"time": 101.0, "event": "world_live", "generation": 0, "layout": "tp1pp1dp2", "members": [], "step": 0},
        {"time": 106.0, "event": "worker_lost", "generation": 0, "worker": "live-1", "in_world": True},
        {
            "time": 106.5, "event": "recovery_planned", "generation": 0, "to": "tp1pp1dp2", "members": [], "lost": [],
            "state_from": "mirrors", "step": planned, "reason": "", "known_for_s": 0.1,
        },
        {"time": 108.0, "event": "world_live", "generation": 1, "layout": "tp1pp1dp2", "members": [], "step": planned},
    ]  # fmt: skip
    run_dir.events.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events))
    lines = [
        {
            "step": step, "loss": 1.0, "grad_norm": 1.0, "lr": 1.0, "tokens": 1, "consumed_samples": 1,
            "generation": generation, "layout": "tp1pp1dp2", "start": end - 1, "end": end,
        }
        for step, generation, end in STEPS
        if generation or step <= planned
    ]  # fmt: skip
    run_dir.metrics.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return run_dir


@pytest.mark.parametrize(("planned", "redone"), [(5, 0), (4, 1)], ids=["nothing again", "a step again"])
def test_a_step_that_was_done_before_does_not_count(planned: int, redone: int, tmp_path: Path) -> None:
    (death,), _ = measured(run_of(tmp_path, planned), [Kill(105.5, 0, "live-1", 5)])
    assert death.detected_s == pytest.approx(0.5)
    assert death.trains_s == pytest.approx(110.0 - 105.5)
    assert death.again_s == pytest.approx(111.0 - 105.5), "step 6 is the first that is new"
    assert (death.usual_s, death.redone) == (1.0, redone)
    assert death.lost_s == pytest.approx(4.5)


def test_the_table_has_a_row_for_each_model() -> None:
    case = {
        "name": "15M", "restart_s": 20.0, "mirror_s": 1.0, "checkpoint_s": 4.0, "ratio_mirror": 20.0,
        "ratio_checkpoint": None, "mirror_detected_s": 0.5, "mirror_trains_s": 1.2,
        "checkpoint_trains_s": 3.4, "mirror_redone": 0, "checkpoint_redone": 3,
        "mirror_step_s": 0.3, "checkpoint_step_s": 0.25,
    }  # fmt: skip
    text = table({"cases": [case], "machine": {"cores": 2, "device": "cpu"}, "seconds": 61.0})
    assert "20×" in text
    assert "–" in text
    assert "300 / 250 ms" in text
