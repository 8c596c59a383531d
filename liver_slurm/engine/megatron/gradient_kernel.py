"""Triton kernel that adds gradients in a narrow type to sums in fp32; imported only where a GPU is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

if TYPE_CHECKING:
    import torch

ALIGNED = 16
"""Addresses, in bytes, and the number of elements are multiples of this. Triton compiles a kernel anew for what is not,
and a first step would wait for it."""

_TILE = 4096
"""Elements that a program adds."""


def add_to_sums(sums: torch.Tensor, gradient: torch.Tensor) -> None:
    """Add a gradient, rounded nowhere but in the sum, in the current stream.

    Args:
        sums: fp32; ``gradient``: bf16 or fp16; both contiguous, on the same card, of as many elements, and aligned as
            :data:`ALIGNED` says.
    """
    count = gradient.numel()
    _add[(triton.cdiv(count, _TILE),)](sums, gradient, count, TILE=_TILE, num_warps=8)


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _add(sums, gradient, count, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton takes no annotations but its own
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = at < count
    added = tl.load(gradient + at, mask=inside, eviction_policy="evict_first").to(tl.float32)
    tl.store(sums + at, tl.load(sums + at, mask=inside) + added, mask=inside)
