"""Sequence parallelism's two collectives as operators that a compiled graph may contain.

A graph with torch's own functional collectives names its process group, so each new world would compile anew. These
name none: they use the tensor parallel group of the world that trains, which :func:`use_group` sets. One graph then
holds a whole layer, with one launch from Python in the place of five.

Gathering is the other's backward pass, and the other way round (Korthikanti et al. 2022).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from liver_slurm.parallel.c10d import gather_into, sum_scatter_into

_group: Any = None


def use_group(group: Any) -> None:
    """Make ``group`` the tensor parallel group of all layers that run from now on; None: there are no peers.

    Without peers, as in the warm-up, the others' parts are like this rank's.
    """
    global _group
    _group = group


# Defined by hand: a step calls them hundreds of times, and torch.library.custom_op's checks cost the host as much as a
# collective does.
_library = torch.library.Library("liver_slurm", "FRAGMENT")
_library.define("gather_sequence(Tensor x, int tp) -> Tensor")
_library.define("scatter_sequence(Tensor x, int tp) -> Tensor")


def _gather(x: Tensor, tp: int) -> Tensor:
    if _group is None:
        return x.repeat(tp, *(1 for _ in x.shape[1:]))
    whole = x.new_empty((x.shape[0] * tp, *x.shape[1:]))
    gather_into(whole, x.contiguous(), _group)
    return whole


def _scatter(x: Tensor, tp: int) -> Tensor:
    if _group is None:
        return x[: x.shape[0] // tp] * tp
    part = x.new_empty((x.shape[0] // tp, *x.shape[1:]))
    sum_scatter_into(part, x.contiguous(), _group)
    return part


for _device in ("CPU", "CUDA"):
    _library.impl("gather_sequence", _gather, _device)
    _library.impl("scatter_sequence", _scatter, _device)


@torch.library.register_fake("liver_slurm::gather_sequence", lib=_library)  # type: ignore[untyped-decorator]
def _(x: Tensor, tp: int) -> Tensor:
    return x.new_empty((x.shape[0] * tp, *x.shape[1:]))


@torch.library.register_fake("liver_slurm::scatter_sequence", lib=_library)  # type: ignore[untyped-decorator]
def _(x: Tensor, tp: int) -> Tensor:
    return x.new_empty((x.shape[0] // tp, *x.shape[1:]))


def gather_sequence(x: Tensor, tp: int) -> Tensor:
    """Each rank's part of the sequence to the whole: [sequence / tp, …] to [sequence, …]."""
    whole: Tensor = torch.ops.liver_slurm.gather_sequence(x, tp)
    return whole


def scatter_sequence(x: Tensor, tp: int) -> Tensor:
    """Sum of all ranks' [sequence, …], of which each keeps its part: [sequence / tp, …]."""
    part: Tensor = torch.ops.liver_slurm.scatter_sequence(x, tp)
    return part


def _remember(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.tp = inputs[1]


torch.library.register_autograd(
    "liver_slurm::gather_sequence",
    lambda ctx, gradient: (scatter_sequence(gradient, ctx.tp), None),
    setup_context=_remember,
    lib=_library,
)
torch.library.register_autograd(
    "liver_slurm::scatter_sequence",
    lambda ctx, gradient: (gather_sequence(gradient, ctx.tp), None),
    setup_context=_remember,
    lib=_library,
)
