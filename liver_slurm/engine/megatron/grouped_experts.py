"""What a rank's experts make of their tokens: one grouped matrix product for all experts.

Tokens are put into the order of their experts, and a grouped product multiplies each expert's rows with its matrix
(megatron-core's ``moe_grouped_gemm``, torch's ``grouped_mm``). Rows are read and summed by their numbers, in both
passes: no sum is made by atomic additions, so it is the same each time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from liver_slurm.engine.megatron.dense_layer import Mlp


class Order(NamedTuple):
    """Where each token's rows are among those of the experts."""

    source: Tensor
    """[rows]; the choice, token times choices plus number, of each row, in the order of experts."""
    place: Tensor
    """[tokens, choices]; the row of each choice."""
    here: Tensor
    """[tokens, choices, 1]; the choice is one of these experts."""
    ends: Tensor
    """[experts]; one past each expert's last row. What is behind the last one's end is nobody's."""


def apply_experts(x: Tensor, weights: Tensor, experts: tuple[Mlp, ...], chosen: int, divided: bool) -> Tensor:
    """Return the weighted sum of what the experts make of their tokens; with tp > 1 this rank's summand.

    Args:
        x: [tokens, batch, hidden].
        weights: [tokens, batch, experts], of these experts alone; zero where a token does not go.
        chosen: experts of each token, these and others.
        divided: other ranks have experts too, so that how many rows there are has to be asked for.
    """
    flat = x.flatten(0, 1)
    kept, who = weights.flatten(0, 1).topk(min(chosen, len(experts)), -1)
    order = _order(who, kept > 0, len(experts), divided)
    rows = _Spread.apply(flat, order)
    inner = _product(rows, order, [expert.up for expert in experts])
    if experts[0].gated:
        gate, linear = inner.chunk(2, -1)
        inner = experts[0].activation(gate) * linear
    else:
        inner = experts[0].activation(inner)
    made = _Collect.apply(_product(inner, order, [expert.down for expert in experts]), order)
    return (made * kept.unsqueeze(-1).to(x.dtype)).sum(1).view_as(x)


def _order(who: Tensor, here: Tensor, experts: int, divided: bool) -> Order:
    """Sort choices by their experts; ``who`` and ``here`` are [tokens, choices]."""
    expert = torch.where(here, who, experts).flatten()
    ranked, source = expert.sort(stable=True)
    ends = torch.searchsorted(ranked, torch.arange(experts, device=who.device), right=True)
    place = torch.empty_like(source).scatter_(0, source, torch.arange(len(source), device=who.device))
    if divided:
        # at least one, as a choice that is not here has to read something
        source = source[: max(int(ends[-1]), 1)]
        place = place.clamp(max=len(source) - 1)
    return Order(source, place.view_as(who), here.unsqueeze(-1), ends.int())


def _product(rows: Tensor, order: Order, weights: list[Tensor]) -> Tensor:
    """Return each expert's rows, [rows, in], times its matrix, [out, in]."""
    made: Tensor = _Product.apply(rows, order.ends, *weights)
    return made


class _Spread(torch.autograd.Function):  # type: ignore[misc]
    """Each row's token: [tokens, hidden] to [rows, hidden]."""

    @staticmethod
    def forward(context: Any, x: Tensor, order: Order) -> Tensor:
        context.save_for_backward(order.place, order.here)
        return x[order.source // order.place.shape[1]]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        place, here = context.saved_tensors
        return torch.where(here, gradient[place], 0).sum(1), None


class _Collect(torch.autograd.Function):  # type: ignore[misc]
    """Each choice's row, zero where the choice is not here: [rows, hidden] to [tokens, choices, hidden]."""

    @staticmethod
    def forward(context: Any, rows: Tensor, order: Order) -> Tensor:
        context.save_for_backward(order.source, order.here)
        return torch.where(order.here, rows[order.place], 0)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        source, here = context.saved_tensors
        return torch.where(here, gradient, 0).flatten(0, 1)[source], None


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """The grouped product. Weights lie apart, each a parameter: they are put side by side in each pass, not kept so."""

    @staticmethod
    def forward(context: Any, rows: Tensor, ends: Tensor, *weights: Tensor) -> Tensor:
        context.save_for_backward(rows, ends, *weights)
        return F.grouped_mm(rows, torch.stack(weights).transpose(1, 2), offs=ends)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, ends, *weights = context.saved_tensors
        gradient = gradient.contiguous()
        of_weights = F.grouped_mm(gradient.t(), rows, offs=ends)
        return F.grouped_mm(gradient, torch.stack(weights), offs=ends), None, *of_weights.unbind()
