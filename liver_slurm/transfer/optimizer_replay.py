"""The optimizer's update, replayed on boxes of fp32 masters and moments.

State changes only inside the optimizer's step. Who has a box as it was after ``n`` updates and the reduced, clipped
gradient of update ``n + 1`` can make that update itself, bit for bit: Adam and SGD work element by element.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.api import Groups, Hyperparameters
from liver_slurm.parallel.torch_private import copy_all
from liver_slurm.reshard.shard_spec import GroupSpec

GRADIENT_BYTES = 4
"""Of one element of a gradient, which is fp32."""

_BLOCK = 1 << 18
"""Elements that an update is replayed on at a time: Adam reads and writes them a dozen times, in the cache."""


_COLUMNS = len(GroupSpec._fields) + len(Hyperparameters._fields)


def encode_groups(groups: Groups) -> torch.Tensor:
    """Encode groups as float64 numbers, [groups, columns].

    They are exact, so that the replayed update uses the very same values.
    """
    return torch.tensor([[*group, *values] for group, values in groups.items()], dtype=torch.float64)


def decode_groups(table: torch.Tensor) -> Groups:
    """Undo :func:`encode_groups`; ``table`` may be flat.

    Raises:
        TransferError: it is no such table.
    """
    if table.numel() % _COLUMNS:
        raise TransferError(f"a table of parameter groups has {table.numel()} numbers, no multiple of {_COLUMNS}")
    split = len(GroupSpec._fields)
    rows = table.view(-1, _COLUMNS).tolist()
    return {GroupSpec(*row[:split]): Hyperparameters(*row[split:]) for row in rows}


Views = list[torch.Tensor]
Updated = tuple[torch.Tensor, ...]
"""Master, moments, gradient: two moments are Adam's, one is that of SGD with momentum."""


def update(boxes: Sequence[Updated], step: int, values: Hyperparameters) -> None:
    """Make one update: on a GPU of all boxes in a few launches, on a CPU a block at a time."""
    if boxes and boxes[0][0].is_cuda:
        _update(boxes, step, values)
        return
    for box in boxes:
        for block in _cut(box):
            _update([block], step, values)


def _cut(box: Updated) -> Iterator[Updated]:
    """Yield the same in blocks of at most :data:`_BLOCK` elements, of whole rows where there are such."""
    first = box[0]
    if first.numel() <= _BLOCK:
        yield box
        return
    rows = _BLOCK // first[0].numel()
    if rows and first.shape[0] > 1:
        yield from zip(*(tensor.split(rows) for tensor in box), strict=True)
        return
    for row in zip(*box, strict=True):
        yield from _cut(row)


def _update(members: Sequence[Updated], step: int, values: Hyperparameters) -> None:
    """AdamW (Loshchilov & Hutter 2019) or SGD as torch does it, with the kernel that the engine's optimizer uses.

    On a GPU that is the fused one, whose result is the same on any slice, and which wants its operands contiguous. On a
    CPU the fused kernel's result depends on alignment, so neither side uses it.
    """
    *kinds, gradients = map(list, zip(*members, strict=True))
    fused = gradients[0].is_cuda
    scattered = [tensor for kind in kinds for tensor in kind if fused and not tensor.is_contiguous()]
    copies = {id(tensor): tensor.contiguous() for tensor in scattered}
    state = [[copies.get(id(tensor), tensor) for tensor in kind] for kind in kinds]
    (_sgd if len(state) == 2 else _adamw)(state, gradients, step, values)
    if scattered:
        copy_all(scattered, [copies[id(tensor)] for tensor in scattered])


def _adamw(
    state: Sequence[list[torch.Tensor]], gradients: list[torch.Tensor], step: int, values: Hyperparameters
) -> None:
    masters, exp_avgs, exp_avg_sqs = state
    adamw(
        masters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        list(torch.full((len(masters),), float(step), device=masters[0].device).unbind()),
        foreach=False,
        fused=masters[0].is_cuda,
        amsgrad=False,
        beta1=values.beta1,
        beta2=values.beta2,
        lr=values.lr,
        weight_decay=values.weight_decay,
        eps=values.eps,
        maximize=False,
    )


def _sgd(
    state: Sequence[list[torch.Tensor]], gradients: list[torch.Tensor], _step: int, values: Hyperparameters
) -> None:
    masters, momenta = state
    kept: list[torch.Tensor | None] = [*momenta]  # torch may put other tensors into the list
    sgd(
        masters,
        gradients,
        kept,
        foreach=False,
        fused=masters[0].is_cuda,
        weight_decay=values.weight_decay,
        momentum=values.momentum,
        lr=values.lr,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )
