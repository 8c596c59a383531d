"""One worker that stands for a tensor parallel group."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulation_lab import COSTS, elastic_job, setting, trace

from liver_slurm.base.errors import BadInput
from liver_slurm.config.layouts import live_workers
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.units import most_workers
from liver_slurm.simulation.cases import elastic_cases
from liver_slurm.simulation.coarse import coarse, group_size

MADE = trace(3000.0, ("a", 100.0, 1600.0), ("b", 400.0, 2600.0), ("c", 500.0, 2300.0))


def tensor_parallel_job() -> JobConfig:
    config = elastic_job()
    layouts = tuple(f"tp2pp1dp{replicas}" for replicas in (1, 2, 3, 4))
    return replace(config, elastic=replace(config.elastic, layouts=layouts))


def test_a_job_of_groups() -> None:
    config = tensor_parallel_job()
    assert group_size(config) == 2
    job, costs = coarse(config, replace(COSTS, step_s={"tp2pp1dp1": 1.0}), 2)
    assert (live_workers(job.live), most_workers(job.standby)) == (1, 3)
    assert job.elastic.layouts == ("tp1pp1dp1", "tp1pp1dp2", "tp1pp1dp3", "tp1pp1dp4")
    assert set(costs.step_s) == set(job.elastic.layouts)
    assert costs.step_s["tp1pp1dp1"] == 1.0


@pytest.mark.parametrize("notice", [60.0, 0.0])
def test_figures_are_those_of_all_workers(notice: float) -> None:
    made, config = setting(MADE, notice), tensor_parallel_job()
    costs = replace(COSTS, step_s={f"tp2pp1dp{n}": 1.0 / n for n in (1, 2, 3, 4)})
    for whole, coarse_one in zip(
        elastic_cases(config, made, costs, ("greedy",)),
        elastic_cases(config, made, costs, ("greedy",), group=2),
        strict=True,
    ):
        assert coarse_one.changes == whole.changes
        for figure in ("ettr", "capacity_goodput", "tokens"):
            assert getattr(coarse_one, figure) == pytest.approx(getattr(whole, figure), rel=1e-3), figure


def test_a_job_that_has_no_groups() -> None:
    with pytest.raises(BadInput, match="--by-node: all layouts"):
        group_size(elastic_job())
    job = tensor_parallel_job()
    model = replace(job.model, num_moe_experts=4, moe_ffn_hidden_size=32)
    job = replace(job, model=model, elastic=replace(job.elastic, layouts=("tp2pp1ep2etp1dp1",)))
    with pytest.raises(BadInput, match="--by-node: tp2pp1ep2etp1dp1 cuts experts otherwise than tp"):
        group_size(job)
