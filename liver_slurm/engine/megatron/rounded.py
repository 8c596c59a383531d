"""Adam and SGD with moments in bf16: half of the memory, and the same update wherever it is made."""

from __future__ import annotations

from typing import Any

import torch

from liver_slurm.engine.replica import Hyperparameters
from liver_slurm.engine.update_rules import Updated, update
from liver_slurm.reshard.tensors import MOMENTS


class RoundedMoments(torch.optim.Optimizer):  # type: ignore[misc]
    """Makes the updates of torch's AdamW or SGD with moments that are rounded, which torch's own do not take.

    It stands in for an optimizer that megatron-core has made, and keeps that one's groups of parameters.
    """

    def __init__(self, like: Any, kind: str) -> None:
        """
        Args:
            like: the optimizer that it stands in for.
            kind: a key of :data:`liver_slurm.reshard.tensors.MOMENTS`.
        """
        super().__init__([{"params": []}], {})  # torch refuses megatron's parameters that are parts of others
        self.param_groups = like.param_groups
        self.moments = MOMENTS[kind]

    def step(self, closure: Any = None) -> None:
        """Make an update, of some elements at a time, as moments are wide meanwhile."""
        assert closure is None, "megatron-core has none"
        for group in self.param_groups:
            with torch.no_grad():
                update(list(map(self._flat, group["params"])), group["step"], hyperparameters(group), self.moments)
            group["step"] += 1

    def _flat(self, parameter: torch.Tensor) -> Updated:
        kept = self.state[parameter]
        state = (parameter.detach(), *(kept[name] for name in self.moments), parameter.grad)
        return tuple(tensor.view(-1) for tensor in state)


def hyperparameters(group: dict[str, Any]) -> Hyperparameters:
    """Return what an optimizer uses for a group of its parameters."""
    beta1, beta2 = group.get("betas", (0.0, 0.0))
    return Hyperparameters(
        float(group["lr"]),
        group["weight_decay"],
        beta1,
        beta2,
        group.get("eps", 0.0),
        group.get("momentum", 0.0),
        group.get("ema_decay", 0.0),
        group.get("balance_rate", 0.0),
    )
