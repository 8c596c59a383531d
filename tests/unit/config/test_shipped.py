"""The job files in configs/: they validate, are of the size that they are named after, and can be planned."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from liver_slurm.config.layouts import feasible_layouts, live_workers
from liver_slurm.config.load import load_job, overridden
from liver_slurm.engine.megatron.spec import world_spec
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.lower_bound import remote_minimum
from liver_slurm.reshard.memory_budget import ALL, Share, footprint
from liver_slurm.reshard.plan import default_keep, plan_transfer
from liver_slurm.scheduler.slurm.batch import header_problems

CONFIGS = Path(__file__).parents[3] / "configs"
NOT_JOBS = {"site.toml", "reference.toml"}
JOBS = sorted(path.name for path in CONFIGS.glob("*.toml") if path.name not in NOT_JOBS)
GB = 1e9


class Plan(NamedTuple):
    """A change of layout to plan, and what must come out."""

    source: str
    target: str
    parameters: float
    both_worlds: float
    """Bytes of state on one worker, of both worlds, at most."""


PLANS = {
    "gpt-tiny.toml": Plan("tp1pp1dp2", "tp2pp1dp2", 209e3, 0.02 * GB),
    "gpt-125m.toml": Plan("tp1pp1dp8", "tp1pp1dp16", 125e6, 3 * GB),
    "gpt-1.3b.toml": Plan("tp1pp1dp16", "tp2pp1dp16", 1.3e9, 20 * GB),
    "gpt-7b.toml": Plan("tp4pp1dp8", "tp2pp2dp16", 6.74e9, 28 * GB),
    "gpt-70b.toml": Plan("tp8pp4dp4", "tp8pp4dp5", 69e9, 42 * GB),
}


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A site file as the documents tell people to make it: a copy, with its lines uncommented."""
    site = tmp_path / "site.toml"
    site.write_text(re.sub(r"(?m)^# (\w+ = )", r"\1", (CONFIGS / "site.toml").read_text()).replace("$USER", "me"))
    monkeypatch.setenv("LIVER_SITE", str(site))
    return site


def test_every_job_file_is_tested() -> None:
    assert sorted(PLANS) == JOBS


@pytest.mark.parametrize("name", JOBS)
def test_it_validates_as_it_is(name: str) -> None:
    config = load_job(CONFIGS / name)
    assert header_problems(config) == []
    most = live_workers(config.live) + config.standby.max_jobs * config.standby.nodes_per_job * (
        config.standby.tasks_per_node
    )
    layouts = feasible_layouts(config, most)
    assert len(layouts) == len(config.elastic.layouts), "layouts that the job can never have"
    assert name == "gpt-tiny.toml" or layouts[0].size == most, "the largest layout uses every standby"


@pytest.mark.parametrize("name", sorted({*JOBS} - {"gpt-tiny.toml"}))
def test_a_copy_of_it_heeds_the_site_file(name: str) -> None:
    assert overridden(CONFIGS / name) == []
    config = load_job(CONFIGS / name)
    assert (config.live.partition, config.live.coordinator_partition) == ("gpu", "cpu")
    assert (config.standby.partitions, config.standby.time, config.standby.grace) == (("scavenger",), "4:00:00", 30.0)


@pytest.mark.parametrize("name", JOBS)
def test_it_has_the_size_of_its_name_and_can_be_planned(name: str) -> None:
    job = PLANS[name]
    config = load_job(CONFIGS / name)
    assert {job.source, job.target} <= set(config.elastic.layouts)
    worlds = [world_spec(config, Layout.parse(text)) for text in (job.source, job.target)]
    keep = default_keep(worlds[0].layout.size, worlds[1].layout.size)
    plan = plan_transfer(*worlds, keep)
    assert 0 < plan.bytes_remote < plan.bytes_total
    masters = sum(math.prod(info.shape) for tensor, info in plan.tensors.items() if tensor.endswith("@master"))
    weights = sum(math.prod(info.shape) for tensor, info in plan.tensors.items() if "@" not in tensor)
    assert (masters or weights) == pytest.approx(job.parameters, rel=0.02)
    shares = [Share(world.shards[0, 0], world.layout.replicas, 0, world.distributed_optimizer) for world in worlds]
    both = footprint(*shares, config.stream.staging_bytes).beside_training(ALL)
    assert both <= job.both_worlds, "state of both worlds on a worker of the first stage"


def test_a_70b_model_shrinks_with_the_least_bytes_evenly_sent() -> None:
    config = load_job(CONFIGS / "gpt-70b.toml")
    worlds = [world_spec(config, Layout.parse(text)) for text in ("tp8pp4dp16", "tp8pp4dp14")]
    plan = plan_transfer(*worlds)
    assert plan.bytes_remote == remote_minimum(*worlds, plan.keep)
    assert plan.max_send_over_mean <= 1.1
    assert plan.send_bytes.max() <= 1.1 * plan.least_hottest
