"""Everything that one call of a user's loop has declared, as state that moves and as the objects that it is of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch

from liver_slurm.base.errors import RunIsOver
from liver_slurm.engine.own_loop.optimizers import (
    initialise,
    load_numbers,
    numbers_of,
    parameters_of,
    state_of,
    tensors_of,
    undeclared,
)
from liver_slurm.engine.own_loop.plain_state import ROOM, pack, unpack
from liver_slurm.engine.own_loop.state import (
    Held,
    Sharded,
    attributes,
    check_places,
    held,
    inner,
    local,
    module_tensors,
    omitted,
)
from liver_slurm.engine.own_loop.watch import Watch
from liver_slurm.parallel.layout import Layout

_PLAIN = "plain_state"
"""Name of the tensor that has what is no tensor."""


@runtime_checkable
class Stateful(Protocol):
    """An object with state of numbers, text, lists and dictionaries, such as a learning-rate scheduler."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Undo :meth:`state_dict`."""


class Declared:
    """What is declared by name; :meth:`complete` makes state of it, once all is."""

    def __init__(self, device: torch.device) -> None:
        self._taken = {_PLAIN}
        self._tensors: dict[str, torch.Tensor | Sharded] = {}
        self._names: dict[int, str] = {}
        """Of each tensor by its id: one that several modules have, such as a tied weight, is state once."""
        self._modules: dict[str, torch.nn.Module] = {}
        self._plain_tensors: dict[str, torch.Tensor] = {}
        self._left_out: list[torch.Tensor] = []
        self._buffers: list[torch.Tensor] = []
        self._objects: dict[str, Stateful] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self._plain = torch.zeros(ROOM, dtype=torch.uint8, device=device)
        self.state: dict[str, Held] = {}
        """Every tensor by name, in one order on all ranks; empty until :meth:`complete`."""

    def add(self, name: str, value: Any) -> None:
        """Declare a module, an optimizer, a tensor or an object.

        Raises:
            RunIsOver: the name is taken, or it is something else.
        """
        if name in self._taken:
            raise RunIsOver(f"elastic.register: there is a {name} already; give each thing a name of its own")
        self._taken.add(name)
        if isinstance(value, torch.nn.Module):
            self._modules[name] = inner(value)
            for path, tensor, is_buffer in module_tensors(name, inner(value)):
                if self._add_tensor(path, tensor) and is_buffer:
                    self._buffers.append(tensor)
        elif isinstance(value, torch.optim.Optimizer):
            self.optimizers[name] = value
        elif isinstance(value, torch.Tensor | Sharded):
            self._plain_tensors[name] = value.tensor if isinstance(value, Sharded) else value
            self._add_tensor(name, value)
        elif isinstance(value, Stateful):
            self._objects[name] = value
        else:
            raise RunIsOver(
                f"elastic.register: {name} is a {type(value).__name__}; allowed: modules, optimizers, tensors, and "
                "objects with state_dict and load_state_dict"
            )

    def _add_tensor(self, name: str, value: torch.Tensor | Sharded) -> bool:
        """Declare a tensor; False: it has a name already."""
        if self._names.setdefault(_id(value), name) != name:
            return False
        self._tensors[name] = value
        return True

    def leave_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Declare that tensors are the same in every world."""
        self._left_out += tensors

    def complete(self, layout: Layout) -> None:
        """Make the optimizers' state, and describe everything.

        Raises:
            RunIsOver: there is state that nobody declared, or that cannot be described.
        """
        known = self._known()
        self._check_modules()
        for name, value in self._tensors.items():
            self.state[name] = held(name, value)
        check_places(self.state, layout, self._plain.device)
        for name, optimizer in self.optimizers.items():
            for _ in state_of(name, optimizer, known):
                pass  # what is wrong with its parameters is said before it makes a step
            initialise(name, optimizer)
            for one in state_of(name, optimizer, known):
                self.state[one.name] = one
        self.pack()
        self.state[_PLAIN] = held(_PLAIN, self._plain)
        check_places(self.state, layout, self._plain.device)
        self._watch = Watch(self._now, self._plain_tensors.values(), self._modules, self.optimizers)

    def _known(self) -> dict[int, tuple[str, torch.Tensor | Sharded]]:
        return {_id(value): (name, value) for name, value in self._tensors.items()}

    def _check_modules(self) -> None:
        accounted = {*self._names, *map(id, self._left_out)}
        for name, module in self._modules.items():
            for path, tensor in attributes(name, module):
                if id(tensor) not in accounted:
                    raise RunIsOver(
                        f"{path} is a tensor that nobody declared; make it a parameter or a buffer, or give it to "
                        "elastic.leave_out if it is the same in every world"
                    )
            for path, tensor in omitted(name, module):
                if id(tensor) not in accounted:
                    raise RunIsOver(
                        f"{path} is a parameter that {name}.state_dict() leaves out; have it there, register it by a "
                        "name of its own, or give it to elastic.leave_out if it is the same in every world"
                    )

    def _now(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor that a name of the state leads to now."""
        yield from self._plain_tensors.items()
        for name, module in self._modules.items():
            for path, tensor, _ in module_tensors(name, module):
                yield path, tensor
        known = self._known()
        for name, optimizer in self.optimizers.items():
            for one in tensors_of(name, optimizer, known):
                yield one.name, one.value

    def settle(self) -> None:
        """Check, between two steps, that what moves is what the loop has, and pack.

        Raises:
            RunIsOver: something was assigned anew.
        """
        self._watch.check()
        self.pack()

    def pack(self) -> None:
        """Bring the bytes that stand for what is no tensor up to date, between two steps."""
        objects = {name: one.state_dict() for name, one in self._objects.items()}
        pack({**objects, **{name: numbers_of(one) for name, one in self.optimizers.items()}}, self._plain)

    def unpack(self) -> None:
        """Have objects and optimizers take over what has arrived as bytes."""
        found = unpack(self._plain)
        missing = [name for name in (*self._objects, *self.optimizers) if name not in found]
        if missing:
            raise RunIsOver(
                f"the loop registers {', '.join(missing)}, and the state that it goes on from has only "
                f"{', '.join(found) or 'tensors'}; a run goes on with what it began with"
            )
        for name, one in self._objects.items():
            one.load_state_dict(found[name])
        for name, optimizer in self.optimizers.items():
            load_numbers(name, optimizer, found[name])

    @property
    def buffers(self) -> list[torch.Tensor]:
        """Parts of modules' buffers that are here, which a forward pass may change."""
        return [local(buffer) for buffer in self._buffers]

    @property
    def lr(self) -> float:
        """Learning rate of the first group of the first optimizer; 0.0 without one."""
        for optimizer in self.optimizers.values():
            return float(optimizer.param_groups[0].get("lr", 0.0))
        return 0.0

    def gradients(self) -> Iterator[tuple[torch.Tensor, bool]]:
        """Yield the part of each gradient that is here, and whether all ranks have the same."""
        replicated = {_id(value): self.state[name].replicated for name, value in self._tensors.items()}
        for name, optimizer in self.optimizers.items():
            for parameter in parameters_of(optimizer):
                if id(parameter) not in replicated:
                    raise undeclared(name, parameter)
                if parameter.grad is not None:
                    yield local(parameter.grad), replicated[id(parameter)]


def _id(value: torch.Tensor | Sharded) -> int:
    return id(value.tensor if isinstance(value, Sharded) else value)
