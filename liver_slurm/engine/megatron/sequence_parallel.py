"""Collectives along a sequence as operators that a compiled graph may contain, for sequence and context parallelism.

A graph with torch's own functional collectives names its process group, so each new world would compile again. These
name an axis: they use that axis' group of the world that trains, which :func:`use_groups` sets. One graph then holds a
whole layer, with one launch from Python in the place of five.

Gathering is the other's backward pass, and the other way round (Korthikanti et al. 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from liver_slurm.parallel.c10d import gather_into, sum_scatter_into
from liver_slurm.parallel.layout import Axis

Along = Axis | Literal["tp_ep"]
"""An axis, or all ranks that the experts are divided over and cut over."""
_groups: Mapping[Along, Any] = {}


def use_groups(groups: Mapping[Along, Any]) -> None:
    """Make these the groups of all layers that run from now on.

    Along an axis without one, as in the warm-up, the others' parts are like this rank's.
    """
    global _groups
    _groups = groups


# Defined by hand: a step calls them hundreds of times, and torch.library.custom_op's checks cost the host as much as a
# collective does.
_library = torch.library.Library("liver_slurm", "FRAGMENT")
_library.define("gather_sequence(Tensor x, int ranks, str axis) -> Tensor")
_library.define("scatter_sequence(Tensor x, int ranks, str axis) -> Tensor")


def _gather(x: Tensor, ranks: int, axis: Along) -> Tensor:
    if axis not in _groups:
        return x.repeat(ranks, *(1 for _ in x.shape[1:]))
    whole = x.new_empty((x.shape[0] * ranks, *x.shape[1:]))
    gather_into(whole, x.contiguous(), _groups[axis])
    return whole


def _scatter(x: Tensor, ranks: int, axis: Along) -> Tensor:
    if axis not in _groups:
        return x[: x.shape[0] // ranks] * ranks
    part = x.new_empty((x.shape[0] // ranks, *x.shape[1:]))
    sum_scatter_into(part, x.contiguous(), _groups[axis])
    return part


for _device in ("CPU", "CUDA"):
    _library.impl("gather_sequence", _gather, _device)
    _library.impl("scatter_sequence", _scatter, _device)


@torch.library.register_fake("liver_slurm::gather_sequence", lib=_library)  # type: ignore[untyped-decorator]
def _(x: Tensor, ranks: int, axis: str) -> Tensor:
    return x.new_empty((x.shape[0] * ranks, *x.shape[1:]))


@torch.library.register_fake("liver_slurm::scatter_sequence", lib=_library)  # type: ignore[untyped-decorator]
def _(x: Tensor, ranks: int, axis: str) -> Tensor:
    return x.new_empty((x.shape[0] // ranks, *x.shape[1:]))


def gather_sequence(x: Tensor, ranks: int, axis: Along = "tp") -> Tensor:
    """Gather each rank's part of the sequence to the whole: [sequence / ranks, …] to [sequence, …]."""
    whole: Tensor = torch.ops.liver_slurm.gather_sequence(x, ranks, axis)
    return whole


def scatter_sequence(x: Tensor, ranks: int, axis: Along = "tp") -> Tensor:
    """Return the sum of all ranks' [sequence, …], of which each keeps its part: [sequence / ranks, …]."""
    part: Tensor = torch.ops.liver_slurm.scatter_sequence(x, ranks, axis)
    return part


def _remember(ctx: Any, inputs: tuple[Tensor, int, Along], output: Tensor) -> None:
    _, ctx.ranks, ctx.axis = inputs


torch.library.register_autograd(
    "liver_slurm::gather_sequence",
    lambda ctx, gradient: (scatter_sequence(gradient, ctx.ranks, ctx.axis), None, None),
    setup_context=_remember,
    lib=_library,
)
torch.library.register_autograd(
    "liver_slurm::scatter_sequence",
    lambda ctx, gradient: (gather_sequence(gradient, ctx.ranks, ctx.axis), None, None),
    setup_context=_remember,
    lib=_library,
)
