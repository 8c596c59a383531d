"""What a job with a training loop of one's own may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.config import own_loop
from liver_slurm.config.layouts import feasible_layouts, impossible
from liver_slurm.config.load import load_job, save_job
from liver_slurm.config.schema import JobConfig
from liver_slurm.parallel.layout import Layout
from liver_slurm.policy.cost_model import choose, estimate

JOB = """
[train]
loop = "a:loop"
steps = 3
global_batch_size = 8
"""


def load(tmp_path: Path, *overrides: str, job: str = JOB) -> JobConfig:
    path = tmp_path / "job.toml"
    path.write_text(job)
    return load_job(path, overrides, Path("/dev/null"), workers=4, files=False)


def test_it_needs_no_model_and_no_data(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert (config.train.distributed_optimizer, config.train.seq_length) == (False, 1)
    assert (config.stream.mode, config.recovery.mirror) == ("pause", "off")


def test_a_resolved_job_is_a_job_file_too(tmp_path: Path) -> None:
    config = load(tmp_path)
    save_job(config, tmp_path / "job.json")
    assert load_job(tmp_path / "job.json", site=Path("/dev/null"), files=False) == config


def test_commands_that_build_the_model_refuse(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^train.loop: plan builds the model, and that of a:loop is the loop's alone$"):
        own_loop.refuse(load(tmp_path), "plan")


def test_another_job_is_left_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"model\.num_layers"):
        load(tmp_path, job=JOB.replace('loop = "a:loop"', ""))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("stream.mode=overlap", 'stream.mode: "overlap" is not allowed with train.loop, as the updates'),
        ("train.distributed_optimizer=true", "train.distributed_optimizer: true is not allowed with train.loop"),
        ("recovery.mirror=on", 'recovery.mirror: "on" is not allowed with train.loop'),
        ("model.provider=a:model", "model.provider: has no use with train.loop"),
        ("data.provider=a:data", "data.provider: has no use with train.loop"),
        ("validation.provider=a:data", "validation.provider: has no use with train.loop"),
        ("stream.memory_limit=1GiB", "stream.memory_limit: has no use with train.loop"),
        ('elastic.layouts=["tp1pp2dp1"]', "pp2 is not for train.loop, which has dp replicas of tp ranks each"),
        ('elastic.layouts=["tp4pp1dp3"]', "its 12 ranks are more than the 8 microbatches of one step"),
        ("train.loop=a", "train.loop"),
    ],
)
def test_what_has_no_use_is_refused(tmp_path: Path, override: str, line: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, override)
    assert line in str(caught.value)


def test_state_is_divided_only_where_that_is_asked_for(tmp_path: Path) -> None:
    assert {one.tp for one in feasible_layouts(load(tmp_path), 4)} == {1}
    sizes = feasible_layouts(load(tmp_path, "elastic.max_tp=4"), 4)
    assert Layout(4, 1, 1) in sizes
    assert Layout(2, 1, 2) in sizes
    assert {one.pp for one in sizes} == {1}


def test_all_ranks_share_the_samples(tmp_path: Path) -> None:
    config = load(tmp_path, "elastic.max_tp=8")
    assert estimate(Layout(2, 1, 2), config) == estimate(Layout(4, 1, 1), config) == 2.0
    layouts = [Layout(1, 1, size) for size in range(1, 8)]
    best, _ = choose(layouts, config, None, lambda layout: ("me",) * layout.size)
    assert best == Layout(1, 1, 4), "of layouts that are as fast the one with fewer workers"
    ramp = load(tmp_path, "train.rampup_batch_size=[2, 2, 12]").train
    assert impossible(Layout(1, 1, 3), config.model, config.data, ramp) is not None
