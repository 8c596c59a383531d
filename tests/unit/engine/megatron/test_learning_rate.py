"""Learning rates are those of Megatron's own scheduler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.config.train import TrainSection
from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.learning_rate import learning_rate

with compat.imports():
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

STYLES = ("cosine", "linear", "constant", "inverse-square-root", "wsd")
SHAPES = ("exponential", "linear", "cosine", "minus-sqrt")


def theirs(train: TrainSection, step: int) -> float:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=train.lr,
        min_lr=train.min_lr,
        lr_warmup_steps=train.lr_warmup_steps,
        lr_decay_steps=train.lr_decay_steps or train.steps,
        lr_decay_style="WSD" if train.lr_decay_style == "wsd" else train.lr_decay_style,
        start_wd=0.0,
        end_wd=0.0,
        wd_incr_steps=0,
        wd_incr_style="constant",
        wsd_decay_steps=train.wsd_decay_steps,
        lr_wsd_decay_style=train.lr_wsd_decay_style.replace("-", "_"),
    )
    scheduler.num_steps = step
    group: dict[str, Any] = optimizer.param_groups[0]
    return float(scheduler.get_lr(group))


@given(st.sampled_from(STYLES), st.sampled_from(SHAPES), st.integers(0, 20), st.data())
def test_they_are_megatrons(style: Any, shape: Any, warm_up: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(warm_up + 10, 200))
    train = TrainSection(
        steps=steps,
        lr=1e-3,
        min_lr=data.draw(st.sampled_from([0.0, 1e-4])),
        lr_warmup_steps=warm_up,
        lr_decay_style=style,
        lr_decay_steps=data.draw(st.none() | st.integers(warm_up + 10, 200)),
        lr_wsd_decay_steps=data.draw(st.none() | st.integers(1, 10)),
        lr_wsd_decay_style=shape,
    )
    step = data.draw(st.integers(max(warm_up, 1), steps))
    assert learning_rate(train, step) == pytest.approx(theirs(train, step), rel=1e-9, abs=1e-15)


def test_the_stable_part_is_stable() -> None:
    train = TrainSection(steps=100, lr=1e-3, lr_warmup_steps=5, lr_decay_style="wsd", lr_wsd_decay_style="linear")
    rates = [learning_rate(train, step) for step in range(101)]
    assert rates[:6] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3])
    assert set(rates[5:91]) == {1e-3}
    assert rates[95] == pytest.approx(5e-4)
    assert rates[100] == 0.0
