"""The cases of a simulation."""

from __future__ import annotations

import pytest
from simulation_lab import COSTS, elastic_job, setting, trace

from liver_slurm.base.errors import BadInput
from liver_slurm.simulation.cases import elastic_cases

KEYS = ["policy", "mode", "ettr", "capacity_goodput", "tokens", "of_bound", "changes", "paused_s", "lost_s", "end"]


def test_each_policy_in_each_mode() -> None:
    made = setting(trace(1000.0, ("a", 100.0, 600.0)))
    cases = elastic_cases(elastic_job(poll=0.1), made, COSTS, ("greedy", "hysteresis"))
    assert [(case.policy, case.mode) for case in cases] == [
        ("greedy", "overlap"), ("greedy", "pause"), ("hysteresis", "overlap"), ("hysteresis", "pause"),
    ]  # fmt: skip
    greedy, pause, late, _ = cases
    assert list(greedy.to_document()) == [*KEYS, "seeds", "intervals"]
    assert greedy.ettr == pytest.approx(1.0 - greedy.paused_s / 1000.0, abs=1e-6)
    assert greedy.ettr > pause.ettr
    assert greedy.capacity_goodput > late.capacity_goodput, "hysteresis waits a minute"
    assert pause.tokens == pytest.approx((131 + 835 + 447.5) * 8 * 64, abs=10.0)
    offered = 1000.0 * 2 + 500.0 * 2
    assert pause.capacity_goodput == pytest.approx((131 * 2 + 417.5 * 4 + 447.5 * 2) / offered, abs=1e-4)


def test_a_policy_that_is_not_there() -> None:
    with pytest.raises(BadInput, match=r"standby\.policy: there is no policy 'wild'"):
        elastic_cases(elastic_job(), setting(trace(9.0, ("a", 0, 9))), COSTS, ("wild",))
