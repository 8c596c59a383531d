"""Sequence parallelism's two collectives as operators that a compiled graph may contain.

A graph with torch's own functional collectives names its process group, so each new world would compile anew. These
name none: they use the tensor parallel group of the world that trains, which :func:`use_group` sets. One graph then
holds a whole layer, with one launch from Python in the place of five.

Gathering is the other's backward pass, and the other way round (Korthikanti et al. 2022).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_group: Any = None


def use_group(group: Any) -> None:
    """Make ``group`` the tensor parallel group of all layers that run from now on; None: there are no peers.

    Without peers, as in the warm-up, the others' parts are like this rank's.
    """
    global _group
    _group = group


@torch.library.custom_op("liver_slurm::gather_sequence", mutates_args=())  # type: ignore[untyped-decorator]
def gather_sequence(x: Tensor, tp: int) -> Tensor:
    """Each rank's part of the sequence to the whole: [sequence / tp, …] to [sequence, …]."""
    if _group is None:
        return x.repeat(tp, *(1 for _ in x.shape[1:]))
    whole = x.new_empty((x.shape[0] * tp, *x.shape[1:]))
    dist.all_gather_into_tensor(whole, x.contiguous(), group=_group)
    return whole


@torch.library.custom_op("liver_slurm::scatter_sequence", mutates_args=())  # type: ignore[untyped-decorator]
def scatter_sequence(x: Tensor, tp: int) -> Tensor:
    """Sum of all ranks' [sequence, …], of which each keeps its part: [sequence / tp, …]."""
    if _group is None:
        return x[: x.shape[0] // tp] * tp
    part = x.new_empty((x.shape[0] // tp, *x.shape[1:]))
    dist.reduce_scatter_tensor(part, x.contiguous(), group=_group)
    return part


@gather_sequence.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, tp: int) -> Tensor:
    return x.new_empty((x.shape[0] * tp, *x.shape[1:]))


@scatter_sequence.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, tp: int) -> Tensor:
    return x.new_empty((x.shape[0] // tp, *x.shape[1:]))


def _remember(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.tp = inputs[1]


gather_sequence.register_autograd(
    lambda ctx, gradient: (scatter_sequence(gradient, ctx.tp), None), setup_context=_remember
)
scatter_sequence.register_autograd(
    lambda ctx, gradient: (gather_sequence(gradient, ctx.tp), None), setup_context=_remember
)
