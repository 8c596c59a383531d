"""State of optimizers is made before their first step, and is what they would have made in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch

from liver_slurm.base.errors import RunIsOver
from liver_slurm.engine.own_loop.optimizers import initialise, load_numbers, numbers_of, state_of

Make = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
KNOWN: list[Make] = [
    partial(torch.optim.AdamW, lr=0.1),
    partial(torch.optim.Adam, lr=0.1, weight_decay=0.1, amsgrad=True),
    partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    partial(torch.optim.SGD, lr=0.1),
    partial(torch.optim.RMSprop, lr=0.1, momentum=0.5, centered=True),
    partial(torch.optim.Adagrad, lr=0.1, initial_accumulator_value=0.5),
    partial(torch.optim.Adadelta, lr=0.1),
    partial(torch.optim.RAdam, lr=0.1),
]
UNKNOWN: list[tuple[Make, str]] = [
    (partial(torch.optim.NAdam, lr=0.1), "mu_product of the optimizer does not begin at zero"),
    (partial(torch.optim.Rprop, lr=0.1), "step_size of the optimizer does not begin at zero"),
    (partial(torch.optim.LBFGS, lr=0.1), "LBFGS makes no step without a closure"),
    (partial(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.5), "allowed: dampening = 0"),
]


def trained(make: Make, begun_before: bool) -> tuple[list[torch.Tensor], dict[str, Any]]:
    torch.manual_seed(3)
    model = torch.nn.Linear(3, 2)
    optimizer = make(model.parameters())
    if begun_before:
        values = [parameter.detach().clone() for parameter in model.parameters()]
        initialise("optimizer", optimizer)
        assert all(torch.equal(*pair) for pair in zip(values, model.parameters(), strict=True)), "nothing is changed"
        assert all(parameter.grad is None for parameter in model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()], optimizer.state_dict()


@pytest.mark.parametrize("make", KNOWN, ids=lambda make: make.func.__name__)
def test_it_trains_as_if_nothing_had_been_made_before(make: Make) -> None:
    (plain, state), (begun, begun_state) = trained(make, False), trained(make, True)
    assert all(torch.equal(*pair) for pair in zip(plain, begun, strict=True))
    assert state["param_groups"] == begun_state["param_groups"]
    for number, values in state["state"].items():
        for key, value in values.items():
            assert value is None or torch.equal(torch.as_tensor(value), begun_state["state"][number][key])


@pytest.mark.parametrize(("make", "line"), UNKNOWN)
def test_what_begins_otherwise_is_refused(make: Make, line: str) -> None:
    with pytest.raises(RunIsOver, match=line):
        initialise("optimizer", make(torch.nn.Linear(3, 2).parameters()))


def test_hyperparameters_go_from_one_to_another() -> None:
    one, other = (torch.optim.Adam(torch.nn.Linear(2, 2).parameters(), lr=torch.tensor(rate)) for rate in (0.5, 0.1))
    one.param_groups[0].update(betas=(0.5, 0.25))
    rate = other.param_groups[0]["lr"]
    load_numbers(other, numbers_of(one))
    assert other.param_groups[0]["lr"] is rate, "a tensor stays the same tensor, as something compiled may hold it"
    assert float(rate) == 0.5
    assert other.param_groups[0]["betas"] == (0.5, 0.25)


def test_counters_on_the_host_beside_state_on_a_card_are_numbers() -> None:
    one, other = (torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2, device="meta"))]) for _ in range(2))
    for optimizer, step in ((one, 3.0), (other, 0.0)):
        (parameter,) = optimizer.param_groups[0]["params"]
        moments = {key: torch.zeros(2, device="meta") for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(step), **moments}
    (parameter,) = one.param_groups[0]["params"]
    boxes = [held.name for held in state_of("optimizer", one, {id(parameter): ("weight", parameter)})]
    assert boxes == ["optimizer.weight.exp_avg", "optimizer.weight.exp_avg_sq"]
    (state,) = other.state.values()
    counter = state["step"]
    load_numbers(other, numbers_of(one))
    assert (state["step"] is counter, float(counter)) == (True, 3.0)
