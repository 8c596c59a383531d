"""Whether what a loop has declared still lies where it lay: what lies elsewhere would move as it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from liver_slurm.base.errors import RunIsOver

Named = Callable[[], Iterator[tuple[str, torch.Tensor]]]
_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Watch:
    """Compares addresses after each step: some tenths of a microsecond a tensor, and nothing of the device."""

    def __init__(
        self,
        named: Named,
        tensors: Iterable[torch.Tensor],
        modules: Mapping[str, torch.nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
    ) -> None:
        """Take everything to lie where it should.

        Args:
            named: yields each tensor of the state that a name leads to now, by name.
            tensors: those that are of none of the modules and optimizers.
        """
        self._named, self._tensors, self._modules, self._optimizers = named, [*tensors], modules, optimizers
        with torch.no_grad():
            self._addresses, self._groups = self._by_name(), self._sizes()
            self._seen = self._walk()

    def check(self) -> None:
        """Compare, between two steps.

        Raises:
            RunIsOver: a tensor is another one, is new or is gone.
        """
        with torch.no_grad():
            self._check()

    def _check(self) -> None:
        if self._walk() == self._seen:
            return
        for name, sizes in self._sizes().items():
            if sizes != self._groups[name]:
                raise RunIsOver(
                    f"{name} has parameter groups of {sizes} parameters, and had {self._groups[name]} as the first "
                    "step began; give it all that it will train before elastic.steps()"
                )
        now = self._by_name()
        for name in {**self._addresses, **now}:
            before, after = self._addresses.get(name), now.get(name)
            if before != after:
                raise RunIsOver(f"{name} {_changed(before, after)}")
        # No state has moved: it is a buffer that is not persistent, or FSDP2 had gathered parameters to evaluate.
        self._seen = self._walk()

    def _by_name(self) -> dict[str, int]:
        return {name: _address(tensor) for name, tensor in self._named()}

    def _sizes(self) -> dict[str, list[int]]:
        return {name: [len(group["params"]) for group in one.param_groups] for name, one in self._optimizers.items()}

    def _walk(self) -> tuple[list[int], dict[str, list[int]]]:
        """Return all addresses without names, which take ten times as long, and sizes of parameter groups."""
        found: list[Any] = [*self._tensors]
        parts: list[torch.nn.Module | None] = [*self._modules.values()]
        for part in parts:
            if part is not None:
                own = vars(part)
                found += own["_parameters"].values()
                found += own["_buffers"].values()
                parts += own["_modules"].values()
        for optimizer in self._optimizers.values():
            for state in optimizer.state.values():
                found += state.values()
        # To ask each whether it is a DTensor would take longer than all else.
        return [one.data_ptr() if type(one) in _PLAIN else _address(one) for one in found], self._sizes()


def _address(value: Any) -> int:
    """Return where the part of a tensor that is here lies; 0: it is none.

    Gradients are off, as the part of a DTensor is then at hand.
    """
    part = value.to_local() if isinstance(value, DTensor) else value
    return int(part.data_ptr()) if isinstance(part, torch.Tensor) else 0


def _changed(before: int | None, after: int | None) -> str:
    if before is None:
        return "is state that was not there as the first step began; make it before elastic.steps()"
    if after is None:
        return "is gone since the first step began; state is the same through all of a run"
    return (
        "is not the tensor that was declared: it was assigned anew (x = ..., x.data = ..., assign=True), and what "
        "moves and is saved is the first one; change it in place, as copy_, mul_ and lerp_ do"
    )
