"""State of a user's optimizers: made before their first step, so that there is storage to receive into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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
    back. An optimizer whose state would not be all zeros by then is refused, as nobody here knows what it begins with.

    Raises:
        RunIsOver: it is such an optimizer, or its state is not of tensors and numbers.
    """
    if any(group.get("momentum") and group.get("dampening") for group in optimizer.param_groups):
        raise RunIsOver(f"{name}: SGD with dampening begins otherwise than it goes on; allowed: dampening = 0")
    before = {
        (id(parameter), key): value.clone()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    with _nothing_to_learn(optimizer):
        try:
            optimizer.step()
        except TypeError as error:
            raise RunIsOver(f"{name}: {type(optimizer).__name__} makes no step without a closure") from error
    with torch.no_grad():
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                state[key] = _begun(f"{name}: {key}", value, key, before.get((id(parameter), key)))


@contextmanager
def _nothing_to_learn(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Give all parameters gradients of zero, and all groups no weight decay."""
    decays = [group.get("weight_decay") for group in optimizer.param_groups]
    gradients = [parameter.grad for parameter in _parameters(optimizer)]
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    try:
        yield
    finally:
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            if "weight_decay" in group:
                group["weight_decay"] = decay
        for parameter, gradient in zip(_parameters(optimizer), gradients, strict=True):
            parameter.grad = gradient


def _begun(name: str, value: Any, key: str, before: torch.Tensor | None) -> Any:
    """Return a value of the state as it is before the first update."""
    if isinstance(value, torch.Tensor):
        if before is not None:
            value.copy_(before)
        elif key == _COUNTER:
            value.zero_()
        elif int(local(value).count_nonzero()):
            raise RunIsOver(f"{name} of the optimizer does not begin at zero, so its state cannot be made beforehand")
        return value
    if value is None or isinstance(value, bool | int | float):
        return type(value)(0) if key == _COUNTER and value is not None else value
    raise RunIsOver(f"{name} of the optimizer is a {type(value).__name__}; allowed: tensors and numbers")


def state_of(name: str, optimizer: torch.optim.Optimizer, known: Mapping[int, tuple[str, Any]]) -> Iterator[Held]:
    """Yield every tensor of an optimizer's state, named after its parameter.

    Args:
        known: name and declaration of each parameter that is registered, by the tensor's id.

    Raises:
        RunIsOver: it trains a parameter that is not registered, or a part of its state is divided in an unknown way.
    """
    for parameter in _parameters(optimizer):
        if id(parameter) not in known:
            raise RunIsOver(
                f"{name} trains a tensor of shape {tuple(parameter.shape)} that nobody declared; register the module "
                "that it is of, or the tensor itself"
            )
        of, declared = known[id(parameter)]
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor) and not _is_number(value, parameter):
                yield _held_like(f"{name}.{of}.{key}", value, held(of, declared), declared)


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
    groups = [
        {key: _plain(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    state = [
        {
            key: _plain(value)
            for key, value in optimizer.state.get(parameter, {}).items()
            if not isinstance(value, torch.Tensor) or _is_number(value, parameter)
        }
        for parameter in _parameters(optimizer)
    ]
    return {"groups": groups, "state": state}


def load_numbers(optimizer: torch.optim.Optimizer, numbers: Numbers) -> None:
    """Undo :func:`numbers_of`; what is a tensor, such as a learning rate or a counter, stays the same tensor."""
    for group, given in zip(optimizer.param_groups, numbers["groups"], strict=True):
        _load(group, given)
    for parameter, given in zip(_parameters(optimizer), numbers["state"], strict=True):
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


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
