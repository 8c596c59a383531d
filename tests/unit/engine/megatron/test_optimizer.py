"""State of the optimizers that megatron-core makes for us."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from liver_slurm.base.errors import LiverError
from liver_slurm.engine.megatron.optimizer import OptimizerState


def weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in (5, 3)]


def adamw(parameters: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=1e-2, weight_decay=0.1, momentum=0.9)


def train(optimizer: Any, parameters: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.75])
@pytest.mark.parametrize("make", [adamw, sgd])
def test_a_moved_optimizer_goes_on_as_if_it_had_stayed(make: Any, decay: float) -> None:
    """Also its bias correction, which depends on the counter alone, and the average of its parameters."""
    stayed, moved = weights(), weights()
    old, new = make(stayed), make(moved)
    OptimizerState(old).seed(torch.zeros_like, decay)
    train(old, stayed, range(5))
    OptimizerState(new).seed(torch.empty_like, decay)
    with torch.no_grad():
        for mine, theirs in zip(moved, stayed, strict=True):
            mine.copy_(theirs)
            for name in set(old.state[theirs]) - {"step"}:
                new.state[mine][name].copy_(old.state[theirs][name])
    OptimizerState(new).step = OptimizerState(old).step
    train(old, stayed, range(5, 8))
    train(new, moved, range(5, 8))
    assert OptimizerState(new).step == OptimizerState(old).step == 8
    for mine, theirs in zip(moved, stayed, strict=True):
        assert torch.equal(mine, theirs)
        for name in set(old.state[theirs]) - {"step"}:
            assert torch.equal(new.state[mine][name], old.state[theirs][name])


@pytest.mark.parametrize("make", [adamw, sgd])
def test_averages_follow_each_update_by_the_textbook(make: Any) -> None:
    parameters = weights()
    optimizer, expected = make(parameters), [parameter.detach().clone() for parameter in parameters]
    state = OptimizerState(optimizer)
    state.seed(torch.zeros_like, 0.9)
    state.begin_averages()
    for step in range(4):
        train(optimizer, parameters, range(step, step + 1))
        expected = [0.9 * mean + 0.1 * each.detach() for mean, each in zip(expected, parameters, strict=True)]
    for parameter, mean in zip(parameters, expected, strict=True):
        torch.testing.assert_close(optimizer.state[parameter]["ema"], mean)
        assert not torch.equal(parameter.detach(), mean)


def test_without_a_decay_no_averages_are_kept() -> None:
    parameters = weights()
    optimizer = adamw(parameters)
    OptimizerState(optimizer).seed(torch.zeros_like)
    OptimizerState(optimizer).begin_averages()
    train(optimizer, parameters, range(1))
    assert set(optimizer.state[parameters[0]]) == {"step", "exp_avg", "exp_avg_sq"}


def test_counters_that_differ_are_an_error() -> None:
    parameters = weights()
    optimizer = adamw(parameters)
    OptimizerState(optimizer).seed(torch.zeros_like)
    optimizer.state[parameters[0]]["step"] += 1
    with pytest.raises(LiverError, match=r"different numbers of updates: \[0, 1\]"):
        _ = OptimizerState(optimizer).step


@pytest.mark.parametrize("make", [adamw, sgd])
def test_where_nothing_is_trained_no_updates_are_counted(make: Any) -> None:
    """Not 0 of them: a counter of 0 would be taken for one that was reset."""
    optimizer = make(weights())
    OptimizerState(optimizer).seed(torch.zeros_like)
    optimizer.param_groups[0]["params"] = []
    assert OptimizerState(optimizer).step is None


@pytest.mark.parametrize("make", [torch.optim.RMSprop, torch.optim.Adam, torch.optim.NAdam])
def test_any_other_optimizer_is_refused_by_its_name(make: Any) -> None:
    with pytest.raises(LiverError, match=rf"{make.__name__} is not known here.*known are torch's AdamW"):
        OptimizerState(make(weights(), lr=0.1))
