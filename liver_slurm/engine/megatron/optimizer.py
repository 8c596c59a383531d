"""Where an optimizer keeps its moments and its step counter, and how it is made to keep them where we look.

torch's ``AdamW`` counts steps for each parameter; whoever read another place would find a counter that stands at 0, and
the bias correction of a moved or resumed run would begin again without a word. torch's ``SGD`` counts none; it is made
to, in the groups, as a world's updates are numbered by that. So does ``Muon``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch

from liver_slurm.base.errors import LiverError
from liver_slurm.engine.averages import average
from liver_slurm.engine.balancing import balance
from liver_slurm.engine.megatron.muon import Muon
from liver_slurm.engine.megatron.rounded import RoundedMoments
from liver_slurm.reshard.tensors import AVERAGE, MOMENTS


class OptimizerState:
    """The state of one inner optimizer: moments of each parameter, one step counter for all."""

    def __init__(self, optimizer: Any) -> None:
        """
        Raises:
            LiverError: it is an optimizer whose state nobody here knows.
        """
        kind = type(optimizer)
        is_sgd, rounded = kind is torch.optim.SGD, kind is RoundedMoments
        if kind not in (torch.optim.SGD, torch.optim.AdamW, RoundedMoments, Muon):
            raise LiverError(
                f"optimizer {kind.__module__}.{kind.__qualname__} is not known here, so its state could be moved wrong "
                "without a sign; known are torch's AdamW and SGD"
            )
        self._optimizer, self._counts_none, self._by_group = optimizer, is_sgd, kind is not torch.optim.AdamW
        self._by_our_rules = kind in (RoundedMoments, Muon)
        self._matrices = optimizer.matrices if kind is Muon else ()
        self._moments = optimizer.moments if rounded else MOMENTS["sgd" if is_sgd else "adam"]
        self._moment_dtype = torch.bfloat16 if rounded else torch.float32

    def gather(self) -> None:
        """Have what the next update needs of other ranks here, once gradients are final; all of them must call this."""
        if isinstance(self._optimizer, Muon):
            self._optimizer.gather()

    def parameters(self) -> Iterator[torch.Tensor]:
        """Yield what it updates: fp32 masters, or shards of them."""
        for group in self._optimizer.param_groups:
            yield from group["params"]

    def seed(self, make: Callable[..., torch.Tensor], ema_decay: float = 0.0, balance_rate: float = 0.0) -> None:
        """Create what the optimizer would make in its first step, so that there is storage to receive into.

        Args:
            make: makes a tensor like a parameter, in a ``dtype``.
            ema_decay: keep averages of the parameters beside the moments, which follow each update; 0: keep none.
            balance_rate: of biases that balance experts' load, in the group without a learning rate; 0: there are none.

        On a GPU torch's fused kernel is chosen: it has no temporaries, where the other's are as large as a moment, and
        the same result on any slice of a parameter (measured on an H200; on a CPU alignment changes the fused result).
        """
        for group in self._optimizer.param_groups:
            group["ema_decay"] = ema_decay
            group["balance_rate"] = 0.0 if group.get("lr_mult", 1.0) else balance_rate
            if all(parameter.is_cuda for parameter in group["params"]):
                group.update(fused=True, foreach=False)
            for parameter in group["params"]:
                names = MOMENTS["muon"] if parameter in self._matrices else self._moments
                kept = {name: make(parameter, dtype=self._moment_dtype) for name in names}
                if ema_decay:
                    kept[AVERAGE] = make(parameter, dtype=torch.float32)
                self._optimizer.state[parameter].update(kept)
        self.step = 0
        if self._counts_none:
            self._optimizer.register_step_post_hook(_count)
        if balance_rate and not self._by_our_rules:
            self._optimizer.register_step_post_hook(_balance)
        if ema_decay:
            self._optimizer.register_step_post_hook(_average)

    def begin_averages(self) -> None:
        """Let the averages, where there are any, begin with the parameters as they are."""
        for parameter in self.parameters():
            kept = self._optimizer.state[parameter].get(AVERAGE)
            if kept is not None:
                kept.copy_(parameter.detach())

    @property
    def step(self) -> int | None:
        """Completed updates; None: it has no parameters here, so it counts none.

        Raises:
            LiverError: parameters of this optimizer have been updated unequally often.
        """
        found = set(map(int, self._counters()))
        if len(found) > 1:
            raise LiverError(f"parameters of one optimizer have made different numbers of updates: {sorted(found)}")
        return found.pop() if found else None

    @step.setter
    def step(self, completed: int) -> None:
        for group in self._optimizer.param_groups:
            if self._by_group:
                group["step"] = completed
            if self._by_group or not group["params"]:
                continue
            parameters = group["params"]
            # torch's fused kernel reads the counters on the device, the others on the host
            device = parameters[0].device if group.get("fused") else torch.device("cpu")
            # made at once, as training may stand still for it
            counters = torch.full((len(parameters),), float(completed), device=device).unbind()
            for parameter, counter in zip(parameters, counters, strict=True):
                self._optimizer.state[parameter]["step"] = counter

    def _counters(self) -> Iterator[Any]:
        for group in filter(operator.itemgetter("params"), self._optimizer.param_groups):
            if self._by_group:
                yield group.get("step", 0)
            elif group.get("fused"):
                # one transfer from the device for all
                yield from torch.stack([self._optimizer.state[each]["step"] for each in group["params"]]).tolist()
            else:
                yield from (self._optimizer.state[parameter]["step"] for parameter in group["params"])


def _count(optimizer: Any, *_: object) -> None:
    """Count an update in the groups of an optimizer that does not do so itself; its post-step hook."""
    for group in optimizer.param_groups:
        group["step"] += 1


def _balance(optimizer: Any, *_: object) -> None:
    """Move the biases of experts by the update's gradients, which no other rule moves them by; its post-step hook."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            if group["balance_rate"]:
                excess = [parameter.grad for parameter in group["params"]]
                balance([parameter.detach() for parameter in group["params"]], excess, group["balance_rate"])


def _average(optimizer: Any, *_: object) -> None:
    """Bring the averages of an optimizer's parameters to the update that it has made; its post-step hook."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            averages = [optimizer.state[parameter][AVERAGE] for parameter in group["params"]]
            average(averages, group["params"], group["ema_decay"])
