"""What a loop assigns anew, in place of changing it, is said at the end of the step; all else goes unnoticed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from own_loop_lab import shard_of

from liver_slurm.base.errors import RunIsOver
from liver_slurm.engine.own_loop import engine
from liver_slurm.engine.own_loop.elastic import Elastic

Deed = Callable[["Model", torch.optim.Optimizer], None]


class Model(torch.nn.Module):
    """A layer in a list, a tied weight, and buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
        self.layers[1].weight = self.layers[0].weight
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.absent = None

    def forward(self) -> torch.Tensor:
        """Return a loss that all parameters are in."""
        return torch.stack([layer(self.mean + 1.0).sum() for layer in self.layers]).sum()


class Momentum(torch.optim.Optimizer):
    """Plain momentum, which makes its state as it is told to."""

    def __init__(self, parameters: Iterable[Any], kind: str) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.kind, self.made = kind, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make an update; the first one is that which makes state."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "m" not in state:
                    state["m"] = torch.zeros_like(parameter)
                if self.kind == "assigns":
                    state["m"] = 0.9 * state["m"] + parameter.grad
                else:
                    state["m"].mul_(0.9).add_(parameter.grad)
                if self.kind == "late" and self.made:
                    state["n"] = torch.zeros_like(parameter)
                parameter.sub_(group["lr"] * state["m"])
        self.made += 1


def nothing(model: Model, optimizer: torch.optim.Optimizer) -> None:
    """Change state in place."""
    del optimizer
    model.mean += 1.0
    model.mean.lerp_(torch.ones(2), 0.5)
    model.cache = torch.ones(2)
    model.seen = torch.ones(2)


def buffer(model: Model, optimizer: torch.optim.Optimizer) -> None:
    del optimizer
    model.mean = 0.9 * model.mean + 1.0


def data(model: Model, optimizer: torch.optim.Optimizer) -> None:
    del optimizer
    model.layers[0].bias.data = model.layers[0].bias.data * 2.0


def assign(model: Model, optimizer: torch.optim.Optimizer) -> None:
    del optimizer
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def layer(model: Model, optimizer: torch.optim.Optimizer) -> None:
    del optimizer
    model.layers[1] = torch.nn.Linear(2, 2)


def more_layers(model: Model, optimizer: torch.optim.Optimizer) -> None:
    del optimizer
    model.layers.append(torch.nn.Linear(2, 2))


def fewer_layers(model: Model, optimizer: torch.optim.Optimizer) -> None:
    del optimizer
    model.layers.pop(1)


def loaded(model: Model, optimizer: torch.optim.Optimizer) -> None:
    del model
    optimizer.load_state_dict({**optimizer.state_dict()})
    for state in optimizer.state.values():
        state["m"] = state["m"].clone()


def group(model: Model, optimizer: torch.optim.Optimizer) -> None:
    del model
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3))]})


def trained(deed: Deed, at: int = 1, kind: str = "in place", steps: int = 3) -> None:
    """Train some steps; the deed is done behind the update of one."""

    def loop(elastic: Elastic) -> None:
        model, mine = Model(), torch.zeros(2)
        optimizer = Momentum(model.parameters(), kind)
        elastic.register(model=model, optimizer=optimizer, mine=mine)
        for step in elastic.steps():
            optimizer.zero_grad()
            model().backward()
            step.report(0.0)
            optimizer.step()
            if step.number == at:
                deed(model, optimizer)

    with shard_of(loop) as shard:
        for step in range(steps):
            assert step <= at or deed is nothing, "it is said in the step that it is done in"
            shard.train_step(engine._OwnSamples(), step)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(
    ("deed", "line"),
    [
        (buffer, r"^model.mean is not the tensor that was declared: it was assigned anew .*; change it in place"),
        (data, r"^model.layers.0.bias is not the tensor that was declared"),
        (assign, r"^model.mean is not the tensor that was declared"),
        (layer, r"^model.layers.1.weight is not the tensor that was declared"),
        (more_layers, r"^model.layers.2.weight is state that was not there as the first step began; make it before"),
        (fewer_layers, r"^model.layers.1.weight is gone since the first step began"),
        (loaded, r"^optimizer.model.layers.0.weight.m is not the tensor that was declared"),
        (group, r"^optimizer has parameter groups of \[3, 1\] parameters, and had \[3\] as the first step began; give"),
    ],
)
def test_what_is_assigned_anew_is_said(deed: Deed, line: str, at: int) -> None:
    with pytest.raises(RunIsOver, match=line):
        trained(deed, at)


def test_what_is_changed_in_place_goes_unnoticed() -> None:
    trained(nothing)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("assigns", r"^optimizer.model.layers.0.weight.m is not the tensor that was declared"),
        ("late", r"^optimizer.model.layers.0.weight.n is state that was not there as the first step began"),
    ],
)
def test_optimizers_that_assign_their_state_are_refused(kind: str, line: str) -> None:
    with pytest.raises(RunIsOver, match=line):
        trained(nothing, kind=kind)


def test_a_plain_tensor_keeps_its_place() -> None:
    def loop(elastic: Elastic) -> None:
        mine = torch.zeros(2)
        elastic.register(mine=mine)
        for step in elastic.steps():
            step.report(0.0)
            step.before_update()
            mine.data = torch.ones(2)

    with shard_of(loop) as shard, pytest.raises(RunIsOver, match=r"^mine is not the tensor that was declared"):
        shard.train_step(engine._OwnSamples(), 0)
