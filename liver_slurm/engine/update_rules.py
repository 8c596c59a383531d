"""The update of boxes of fp32 masters and their moments: by who replays an optimizer's, and with moments in bf16 by it.

Adam and SGD work element by element, and so do rounding and the moving average of the weights, so an update of any
slice is the same, bit for bit, as that of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from liver_slurm.engine.averages import average
from liver_slurm.engine.balancing import balance
from liver_slurm.engine.replica import Hyperparameters
from liver_slurm.parallel.torch_private import copy_all
from liver_slurm.reshard.tensors import ADAM, AVERAGE, MOMENTS

_BLOCK = 1 << 18
"""Elements that are updated at a time on a CPU: Adam reads and writes them a dozen times, in the cache."""
_CARD_BLOCK = 1 << 22
"""Elements that are updated at a time on a card where moments are rounded: each takes four bytes while they are not."""

Updated = tuple[torch.Tensor, ...]
"""Master, moments, gradient."""


def update(boxes: Sequence[Updated], step: int, values: Hyperparameters, moments: tuple[str, ...] = ADAM) -> None:
    """Make one update: on a GPU of all boxes in a few launches, on a CPU a block at a time.

    Args:
        step: updates that were made before.
        moments: what the boxes' are called, see :func:`liver_slurm.reshard.tensors.moments_of`.
    """
    for batch in _batches(boxes):
        _update(batch, step, values, moments)


def _batches(boxes: Sequence[Updated]) -> Iterator[Sequence[Updated]]:
    """Yield what is updated at a time."""
    if not boxes or not boxes[0][0].is_cuda:
        yield from ([block] for box in boxes for block in _cut(box, _BLOCK))
        return
    if all(tensor.dtype == torch.float32 for tensor in boxes[0]):
        yield boxes
        return
    batch: list[Updated] = []
    filled = 0
    for block in (block for box in boxes for block in _cut(box, _CARD_BLOCK)):
        if batch and filled + block[0].numel() > _CARD_BLOCK:
            yield batch
            batch, filled = [], 0
        batch.append(block)
        filled += block[0].numel()
    yield batch


def _cut(box: Updated, most: int) -> Iterator[Updated]:
    """Yield the same in blocks of at most so many elements, of whole rows where there are such."""
    first = box[0]
    if first.numel() <= most:
        yield box
        return
    rows = most // first[0].numel()
    if rows and first.shape[0] > 1:
        yield from zip(*(tensor.split(rows) for tensor in box), strict=True)
        return
    for row in zip(*box, strict=True):
        yield from _cut(row, most)


def _update(members: Sequence[Updated], step: int, values: Hyperparameters, moments: tuple[str, ...]) -> None:
    """Update as torch's AdamW (Loshchilov & Hutter 2019) or SGD does, with the kernel that the engine's optimizer uses.

    On a GPU that is the fused one, whose result is the same on any slice, and which wants its operands contiguous. On a
    CPU the fused kernel's result depends on alignment, so neither side uses it. What is not in fp32 is updated in fp32
    and rounded to the nearest, to even where two are as near.
    """
    *kinds, gradients = map(list, zip(*members, strict=True))
    fused = gradients[0].is_cuda

    def apart(tensor: torch.Tensor) -> bool:
        return tensor.dtype != torch.float32 or (fused and not tensor.is_contiguous())

    originals = [tensor for kind in kinds for tensor in kind if apart(tensor)]
    copies = {id(tensor): tensor.to(torch.float32, memory_format=torch.contiguous_format) for tensor in originals}
    masters, *state = [[copies.get(id(tensor), tensor) for tensor in kind] for kind in kinds]
    kept = dict(zip(moments, state, strict=True))
    if all(name in kept for name in MOMENTS["sgd"]):
        _sgd([masters, *(kept[name] for name in MOMENTS["sgd"])], gradients, step, values)
    else:
        _adamw([masters, *(kept[name] for name in ADAM)], gradients, step, values)
    balance(masters, gradients, values.balance_rate)
    average(kept.get(AVERAGE, []), masters, values.ema_decay)
    if originals:
        copy_all(originals, [copies[id(tensor)] for tensor in originals])


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
