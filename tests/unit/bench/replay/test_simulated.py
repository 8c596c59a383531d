"""What is replayed for real is simulated by the same rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from liver_slurm.bench.replay.measured import Figures, WorldSteps
from liver_slurm.bench.replay.restart_orders import Step
from liver_slurm.bench.replay.simulated import restart_steps, simulate_elastic, simulate_restarts
from liver_slurm.bench.replay.stage import Replay
from liver_slurm.simulation.costs import Costs

COSTS = Costs(
    step_s={"tp1pp1dp2": 0.1, "tp1pp1dp3": 0.08, "tp1pp1dp4": 0.06}, join_s=5.0, prepare_s=0.5, stream_s=0.01,
    exposed_overlap_s=0.05, restart_s=6.0, save_s=0.1,
)  # fmt: skip


@pytest.fixture
def replay(tmp_path: Path) -> Replay:
    return Replay(tmp_path, seconds=240.0, nodes=2, notice=10, seed=3)


def test_the_product_trains_on_where_a_restart_stands(replay: Replay) -> None:
    ours, theirs = elastic(replay), growing(replay)
    assert ours.ettr > 0.99
    assert ours.changes > len(replay.reclaims)
    assert 1.0 - 6.5 * theirs.changes / 240.0 < theirs.ettr < ours.ettr
    assert theirs.capacity_goodput < ours.capacity_goodput < 1.0


def elastic(replay: Replay, queue_s: float = 0.5) -> Figures:
    return simulate_elastic(replay, COSTS, queue_s, seeds=1)


def growing(replay: Replay) -> Figures:
    return simulate_restarts(replay, COSTS, 0.5)


def test_a_longer_queue_costs_capacity(replay: Replay) -> None:
    assert elastic(replay, queue_s=8.0).capacity_goodput < elastic(replay, queue_s=0.5).capacity_goodput


def test_steps_of_a_restart_are_its_own() -> None:
    steps = [Step(number, float(number), number + 0.4) for number in range(1, 9)]
    found = restart_steps(COSTS, [WorldSteps(2, steps, "tp1pp1dp2"), WorldSteps(3, steps[:3], "tp1pp1dp3")])
    assert found.step_s == {**COSTS.step_s, "tp1pp1dp2": 1.0}
