"""Cross entropy over a vocabulary that tensor parallelism may divide, without a copy of the logits in fp32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from liver_slurm.engine.megatron.dense_layer import compiled, plain


def token_losses(logits: Tensor, labels: Tensor, real: int, group: Any, compile_: bool, z_loss: float = 0.0) -> Tensor:
    """Cross entropy of each token, fp32.

    With ``z_loss`` the gradient is that of the cross entropy plus ``z_loss`` times the square of the logarithm of the
    softmax's denominator (Chowdhery et al. 2022, section 5). The value is the cross entropy alone: what a run reports
    can be compared with runs without it.

    Args:
        logits: [..., this rank's rows of the vocabulary]; what is kept for the backward pass is these alone.
        labels: [...], numbers in the whole vocabulary.
        real: rows of this rank that are no padding.
        group: tensor parallel group; rank r holds the r-th part of the vocabulary.
    """
    return _CrossEntropy.apply(logits, labels, real, group, compiled if compile_ else plain, z_loss)


class _CrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        context: Any,
        logits: Tensor,
        labels: Tensor,
        real: int,
        group: Any,
        run: Callable[[Any], Any],
        z_loss: float,
    ) -> Tensor:
        # Numbers in this rank's own rows: what is compiled must not depend on the rank.
        own = _packed(labels - group.rank() * logits.shape[-1])
        largest = run(_largest)(logits, real)
        if group.size() > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group)
        sums = run(_sums)(logits, own, largest, real)
        if group.size() > 1:
            dist.all_reduce(sums, group=group)
        log_sum = sums[0].log() + largest
        context.save_for_backward(logits, own, log_sum)
        context.real, context.run, context.z_loss = real, run, z_loss
        return log_sum - sums[1]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, own, log_sum = context.saved_tensors
        found = context.run(_gradient)(logits, own, log_sum, _packed(gradient), context.real, context.z_loss)
        return found, None, None, None, None, None


def _packed(x: Tensor) -> Tensor:
    """With the strides of a new tensor: a graph is taken only for those that it was compiled for."""
    return x.contiguous().flatten().view(x.shape)


def _largest(logits: Tensor, real: int) -> Tensor:
    """Return the largest logit of this rank's own rows; minus infinity if all of them are padding."""
    rows = torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(rows < real, logits.float(), -math.inf).amax(-1)


def _sums(logits: Tensor, own: Tensor, largest: Tensor, real: int) -> Tensor:
    """[2, ...]: sums of exponentials, and the labels' logits where they are this rank's, 0 elsewhere."""
    rows = torch.arange(logits.shape[-1], device=logits.device)
    exponentials = torch.where(rows < real, (logits.float() - largest.unsqueeze(-1)).exp(), 0.0).sum(-1)
    here = (own >= 0) & (own < real)
    chosen = logits.gather(-1, torch.where(here, own, 0).unsqueeze(-1)).squeeze(-1).float()
    return torch.stack((exponentials, torch.where(here, chosen, 0.0)))


def _gradient(logits: Tensor, own: Tensor, log_sum: Tensor, gradient: Tensor, real: int, z_loss: float) -> Tensor:
    rows = torch.arange(logits.shape[-1], device=logits.device)
    probabilities = torch.where(rows < real, (logits.float() - log_sum.unsqueeze(-1)).exp(), 0.0)
    if z_loss:
        probabilities = probabilities * (1.0 + 2.0 * z_loss * log_sum).unsqueeze(-1)
    chosen = rows == own.unsqueeze(-1)
    return ((probabilities - chosen.float()) * gradient.unsqueeze(-1)).to(logits.dtype)


def exercise_loss(logits: Tensor, real: int, z_loss: float) -> None:
    """Compile for logits like these, forward and backward: what a rank of a later world will then find."""
    labels = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    with torch.no_grad():  # as inside an autograd function: a graph is taken in the same mode only
        largest = compiled(_largest)(logits, real)
        sums = compiled(_sums)(logits, labels, largest, real)
        compiled(_gradient)(logits, labels, sums[0].log() + largest, torch.zeros_like(largest), real, z_loss)
