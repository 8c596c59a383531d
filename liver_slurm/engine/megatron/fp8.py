"""Matrix products of linear layers in FP8, with scales that are found in each of them: none of them is state.

The formats are those of Micikevicius et al. 2022 (arXiv 2209.05433): E4M3 in the forward pass, E5M2 for gradients, each
tensor with one scale from its own greatest magnitude («tensorwise», «current scaling»). Scales of earlier steps
(«delayed scaling») would save a reading of each tensor, but be a history that every change of layout has to move.

Scales are powers of two. They round nothing themselves, so what a number is rounded to does not depend on what else is
in its tensor, but for the smallest; and layouts, which cut tensors differently, train alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from liver_slurm.base.errors import LiverError
from liver_slurm.config.fp8 import CAPABILITY, dotted
from liver_slurm.parallel import torch_private

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_SMALLEST = 2.0**-100
"""Greatest magnitude that a tensor is taken to have at least, as the scale of less would not be finite."""
_EXPONENT = 0x7F800000
"""Bits of the exponent in an fp32 number; alone they are the greatest power of two in it."""


def check_device(device: torch.device) -> None:
    """Check that a device and torch have matrix products in FP8; CPUs do, slow ones.

    Raises:
        LiverError: it is a card of before 2022.
        BadInput: this version of torch has none.
    """
    torch_private.check_names("_scaled_mm")
    if device.type == "cuda" and (found := torch.cuda.get_device_capability(device)) < CAPABILITY:
        text = f"train.fp8: {torch.cuda.get_device_name(device)} has no matrix products in FP8"
        text += f", as its compute capability is {dotted(found)}"
        raise LiverError(f"{text}; use cards of {dotted(CAPABILITY)} and above, or false")


class Scaled(NamedTuple):
    """A matrix in FP8."""

    values: Tensor
    factor: Tensor
    """What its values are multiplied with to be what was meant; a power of two, [] in fp32."""

    def transposed(self) -> Scaled:
        """Return the transposed matrix, its rows in one piece, as products in FP8 want them."""
        return Scaled(self.values.t().contiguous(), self.factor)


def scaled(x: Tensor, dtype: torch.dtype) -> Scaled:
    """Round a matrix to FP8. What is not finite in it stays so, or is not a number."""
    most = torch.finfo(dtype).max
    return _rounded(x, _power_of_two(most / x.abs().amax().float().clamp(min=_SMALLEST)), dtype)


def _rounded(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Scaled:
    return Scaled((x.float() * scale).to(dtype), scale.reciprocal())


def _power_of_two(x: Tensor) -> Tensor:
    """Return the greatest power of two in a positive number."""
    return (x.view(torch.int32) & _EXPONENT).view(torch.float32)


def product(left: Scaled, right: Scaled, dtype: torch.dtype, fast: bool = False) -> Tensor:
    """Return ``left @ right.T``.

    Args:
        left, right: [rows, inner] and [columns, inner], contiguous; ``inner`` and ``columns`` are multiples of 16.
        fast: sums up with some 14 bits instead of fp32's 24, as is usual in the forward pass.
    """
    factors = (left.factor, right.factor)
    return torch_private.scaled_product(left.values, right.values.t(), factors, dtype, fast)


class _Linear(torch.autograd.Function):  # type: ignore[misc]
    """``x @ weight.T`` and its two derivatives.

    For the backward pass inputs are kept in FP8. Weights are rounded again there: each microbatch under way would keep
    a copy of them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        left, right = scaled(x, E4M3), scaled(weight, E4M3)
        ctx.save_for_backward(*left, weight, right.factor)
        return product(left, right, x.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,), saved = gradients, ctx.saved_tensors
        x, weight = Scaled(*saved[:2]), _rounded(saved[2], saved[3].reciprocal(), E4M3)
        above = scaled(gradient, E5M2)
        return (
            product(above, weight.transposed(), gradient.dtype),
            product(above.transposed(), x.transposed(), gradient.dtype),
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, fp8: bool) -> Tensor:
    """Return ``torch.nn.functional.linear`` of [..., inner] and [columns, inner], computed in FP8 or as it is."""
    if not fp8:
        return F.linear(x, weight, bias)
    y = _Linear.apply(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], -1)
    return y if bias is None else y + bias
