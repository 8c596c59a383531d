"""State of a user's optimizers: made before their first step, so that there is storage to receive into."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from liver_slurm.base.errors import RunIsOver
from liver_slurm.engine.own_loop.state import Held, Sharded, held, local

Numbers = dict[str, Any]
"""What of an optimizer is no box: numbers of its state by parameter, and the hyperparameters of its groups."""
_COUNTER = "step"
"""The name that optimizers give the number of their updates."""


def initialise(name: str, optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer make its state, as it is before the first update.

    It makes an update with gradients of zero and no weight decay, which changes no parameter; its counters are then set
    back, and state that it had before is as it was. An optimizer whose state would not be all zeros by then is refused,
    as nobody here knows what it begins with.

    Raises:
        RunIsOver: it is such an optimizer, or its state is not of tensors and numbers.
    """
    kind = type(optimizer).__name__
    if any(group.get("momentum") and group.get("dampening") for group in optimizer.param_groups):
        raise RunIsOver(f"{name}: SGD with dampening begins otherwise than it goes on; allowed: dampening = 0")
    before = {
        (id(parameter), key): _copied(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    # Those with state, such as a momentum that was loaded, may move without a gradient.
    moved = [(one, one.detach().clone()) for one in parameters_of(optimizer) if optimizer.state.get(one)]
    norms = _norms(optimizer)
    with _nothing_to_learn(optimizer):
        try:
            optimizer.step()
        except TypeError as error:
            raise RunIsOver(f"{name}: {kind} makes no step without a closure") from error
    with torch.no_grad():
        for parameter, value in moved:
            parameter.copy_(value)
        if _norms(optimizer) != norms:
            raise RunIsOver(
                f"{name}: {kind} changes parameters whose gradients are zero, so its state cannot be made before its "
                "first step; have it decay them by weight_decay, or not at all"
            )
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                state[key] = _begun(f"{name}: {key}", value, key, before.get((id(parameter), key)))


def _norms(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return what shows that parameters have changed, without room for a second copy of all.

    What they are built over may be memory with anything in it, which is written over later: NaN is equal to NaN here.
    """
    norms = [torch.linalg.vector_norm(local(one), dtype=torch.float64) for one in parameters_of(optimizer)]
    return [float(norm.nan_to_num(nan=-1.0)) for norm in norms]


@contextmanager
def _nothing_to_learn(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Give all parameters gradients of zero, and all groups no weight decay; groups are then as they were."""
    # Some count their updates in a group.
    groups = [{key: (value, _copied(value)) for key, value in _settings(group)} for group in optimizer.param_groups]
    gradients = [parameter.grad for parameter in parameters_of(optimizer)]
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    try:
        yield
    finally:
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            for key in {*group} - {*before, "params"}:
                del group[key]
            group.update({key: _restored(*values) for key, values in before.items()})
        for parameter, gradient in zip(parameters_of(optimizer), gradients, strict=True):
            parameter.grad = gradient


def _settings(group: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in group.items() if key != "params")


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else copy.copy(value)


def _restored(value: Any, before: Any) -> Any:
    """Return a value as it was; a tensor stays the same one, as something compiled may hold it."""
    if isinstance(value, torch.Tensor) and isinstance(before, torch.Tensor):
        value.detach().copy_(before)
        return value
    return before


def _begun(name: str, value: Any, key: str, before: Any) -> Any:
    """Return a value of the state as it is before the first update; None: it was not there before."""
    if before is not None:
        return _restored(value, before)
    if isinstance(value, torch.Tensor):
        if key == _COUNTER:
            value.zero_()
        elif int(local(value).count_nonzero()):
            raise RunIsOver(f"{name} of the optimizer does not begin at zero, so its state cannot be made beforehand")
        return value
    if value is None or isinstance(value, bool | int | float):
        return type(value)(0) if key == _COUNTER and value is not None else value
    raise RunIsOver(f"{name} of the optimizer is a {type(value).__name__}; allowed: tensors and numbers")


class StateTensor(NamedTuple):
    """A tensor of an optimizer's state."""

    name: str
    """After its parameter."""
    value: torch.Tensor
    of: str
    """Name of the parameter."""
    declared: Any
    """The parameter, as it was declared."""


def tensors_of(
    name: str, optimizer: torch.optim.Optimizer, known: Mapping[int, tuple[str, Any]]
) -> Iterator[StateTensor]:
    """Yield every tensor of an optimizer's state, but for counters that lie elsewhere than their parameter.

    Args:
        known: name and declaration of each parameter that is registered, by the tensor's id.

    Raises:
        RunIsOver: it trains a parameter that is not registered.
    """
    for parameter in parameters_of(optimizer):
        if id(parameter) not in known:
            raise undeclared(name, parameter)
        of, declared = known[id(parameter)]
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor) and not _is_number(value, parameter):
                yield StateTensor(f"{name}.{of}.{key}", value, of, declared)


def undeclared(name: str, parameter: torch.Tensor) -> RunIsOver:
    """Return what is wrong with an optimizer's parameter that nobody registered."""
    return RunIsOver(
        f"{name} trains a tensor of shape {tuple(parameter.shape)} that nobody declared; register the module that it "
        "is of, or the tensor itself"
    )


def state_of(name: str, optimizer: torch.optim.Optimizer, known: Mapping[int, tuple[str, Any]]) -> Iterator[Held]:
    """Describe every tensor that :func:`tensors_of` yields.

    Raises:
        RunIsOver: as there, or a part of the state is divided in an unknown way.
    """
    for one in tensors_of(name, optimizer, known):
        yield _held_like(one.name, one.value, held(one.of, one.declared), one.declared)


def _held_like(name: str, value: torch.Tensor, parameter: Held, declared: Any) -> Held:
    """Describe a part of the state of a parameter, which is divided as that is, or a counter."""
    if isinstance(declared, Sharded) and value.shape == declared.tensor.shape:
        return held(name, Sharded(value, declared.shape, declared.offset))
    found = held(name, value)
    if found.whole and not parameter.whole and value.dim() and type(value) is torch.Tensor:
        raise RunIsOver(f"{name} is of shape {tuple(value.shape)}, and {parameter.name} is divided; it cannot be moved")
    return found


def _is_number(value: torch.Tensor, parameter: torch.Tensor) -> bool:
    """Return whether a tensor is a counter that lies elsewhere than its parameter.

    It is then on the host, beside a card's state.
    """
    return not value.dim() and value.device.type != parameter.device.type


def numbers_of(optimizer: torch.optim.Optimizer) -> Numbers:
    """Return what of an optimizer is no box."""
    groups = [{key: _plain(value) for key, value in _settings(group)} for group in optimizer.param_groups]
    state = [
        {
            key: _plain(value)
            for key, value in optimizer.state.get(parameter, {}).items()
            if not isinstance(value, torch.Tensor) or _is_number(value, parameter)
        }
        for parameter in parameters_of(optimizer)
    ]
    return {"groups": groups, "state": state}


def load_numbers(name: str, optimizer: torch.optim.Optimizer, numbers: Numbers) -> None:
    """Undo :func:`numbers_of`; what is a tensor, such as a learning rate or a counter, stays the same tensor.

    Raises:
        RunIsOver: they are of an optimizer of other groups.
    """
    sizes = len(optimizer.param_groups), len([*parameters_of(optimizer)])
    given_sizes = len(numbers["groups"]), len(numbers["state"])
    if sizes != given_sizes:
        here, there = (f"{parameters} parameters in {groups} groups" for groups, parameters in (sizes, given_sizes))
        raise RunIsOver(f"{name} has {here}, and the state that it goes on from is of {there}; a run keeps them")
    for group, given in zip(optimizer.param_groups, numbers["groups"], strict=True):
        _load(group, given)
    for parameter, given in zip(parameters_of(optimizer), numbers["state"], strict=True):
        _load(optimizer.state[parameter], given)


def _load(into: dict[str, Any], given: dict[str, Any]) -> None:
    for key, value in given.items():
        own = into.get(key)
        if isinstance(own, torch.Tensor):
            own.fill_(value)
        else:
            into[key] = tuple(value) if isinstance(own, tuple) else value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Yield the parameters of all groups."""
    for group in optimizer.param_groups:
        yield from group["params"]
