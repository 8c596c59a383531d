"""Sums of gradients: each microbatch's, in the weights' type, is added to the step's sum in fp32.

megatron-core's ``DistributedDataParallel`` adds with torch's kernel for two types, which goes element by element and
takes twice as long as the bytes need (measured on an H200: 23 ms of a step of 554 ms). Here a hook of each weight adds
first, on a card with a kernel of our own, and sets the flag by which Transformer Engine's layers tell megatron-core
that theirs is added already.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial

import torch


def add_gradients_first(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Have the gradients of weights whose sums are of another type added before megatron-core would.

    Args:
        parameters: of a model that ``DistributedDataParallel`` is around.
    """
    for parameter in parameters:
        if parameter.requires_grad and parameter.main_grad.dtype != parameter.dtype:
            # Else megatron-core adds a tied embedding's again: it takes what its own fused layers leave for zeros.
            parameter.zero_out_wgrad = False
            parameter.register_hook(partial(_add, weakref.ref(parameter)))


def _add(which: weakref.ref[torch.nn.Parameter], gradient: torch.Tensor) -> None:
    parameter = which()
    assert parameter is not None  # whose gradient this is
    add_to_sums(parameter.main_grad, gradient)
    parameter.grad_added_to_main_grad = True


def add_to_sums(sums: torch.Tensor, gradient: torch.Tensor) -> None:
    """Add a gradient to its sums, fp32 and contiguous, of the same shape; bitwise ``sums.add_(gradient)``."""
    if gradient.is_cuda and gradient.is_contiguous():
        from liver_slurm.engine.megatron import gradient_kernel  # needs Triton, which comes with torch for GPUs only

        aligned = gradient_kernel.ALIGNED
        if not (gradient.numel() % aligned or gradient.data_ptr() % aligned or sums.data_ptr() % aligned):
            gradient_kernel.add_to_sums(sums, gradient)
            return
    sums.add_(gradient)
