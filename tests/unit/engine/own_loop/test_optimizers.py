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
    load_numbers("optimizer", other, numbers_of(one))
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
    load_numbers("optimizer", other, numbers_of(one))
    assert (state["step"] is counter, float(counter)) == (True, 3.0)


class CountsInGroups(torch.optim.SGD):
    """Counts its updates where fused optimizers of Apex and Transformer Engine do; the first has number 1."""

    def step(self, closure: Any = None) -> Any:
        """Make an update whose rate depends on its number."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            group["steps_seen"].append(group["step"])
        rates = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate / group["step"]
        found = super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
        return found


def counting(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return CountsInGroups([{"params": [*parameters], "steps_seen": []}], lr=0.1, weight_decay=0.1)


def test_what_is_counted_in_groups_begins_with_the_first_step() -> None:
    (plain, state), (begun, begun_state) = trained(counting, False), trained(counting, True)
    assert all(torch.equal(*pair) for pair in zip(plain, begun, strict=True))
    assert state["param_groups"] == begun_state["param_groups"]
    assert begun_state["param_groups"][0]["steps_seen"] == [1, 2, 3]


def test_a_learning_rate_that_is_a_tensor_stays_the_same_one() -> None:
    optimizer = torch.optim.Adam(torch.nn.Linear(2, 2).parameters(), lr=torch.tensor(0.5))
    rate = optimizer.param_groups[0]["lr"]
    initialise("optimizer", optimizer)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.5


@pytest.mark.parametrize("counter", [3, 3.0, torch.tensor(3.0)])
def test_what_was_loaded_is_as_it_was(counter: Any) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        moments = {key: torch.full_like(parameter, 0.5) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.as_tensor(counter).clone(), **moments}
    values = [parameter.detach().clone() for parameter in model.parameters()]
    initialise("optimizer", optimizer)
    assert all(torch.equal(*pair) for pair in zip(values, model.parameters(), strict=True)), "momentum has moved none"
    for state in optimizer.state.values():
        assert float(state["step"]) == 3.0
        assert all(bool((state[key] == 0.5).all()) for key in ("exp_avg", "exp_avg_sq"))


class PlainCounter(torch.optim.Optimizer):
    """Has a number, no tensor, as its counter, and a decay of its own name."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float = 0.0) -> None:
        super().__init__(parameters, {"decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Decay, and count."""
        del closure
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1.0 - group["decay"])
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1


def test_numbers_that_were_loaded_stay_and_new_ones_are_zero() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = PlainCounter(model.parameters())
    optimizer.state[model.weight] = {"step": 7}
    initialise("optimizer", optimizer)
    assert (optimizer.state[model.weight]["step"], optimizer.state[model.bias]["step"]) == (7, 0)


def test_an_optimizer_that_moves_parameters_without_gradients_is_refused() -> None:
    with pytest.raises(RunIsOver, match=r"^optimizer: PlainCounter changes parameters whose gradients are zero"):
        initialise("optimizer", PlainCounter(torch.nn.Linear(3, 2).parameters(), decay=0.1))


def test_memory_that_holds_anything_has_not_changed() -> None:
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
        model.bias.fill_(float("inf"))
    initialise("optimizer", torch.optim.AdamW(model.parameters()))


def test_numbers_of_other_groups_are_refused() -> None:
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    saved = numbers_of(torch.optim.SGD([{"params": [*one.parameters()]}, {"params": [*two.parameters()]}], lr=0.1))
    line = r"^optimizer has 2 parameters in 1 groups, and the state that it goes on from is of 4 parameters in 2 groups"
    with pytest.raises(RunIsOver, match=line):
        load_numbers("optimizer", torch.optim.SGD(one.parameters(), lr=0.1), saved)
