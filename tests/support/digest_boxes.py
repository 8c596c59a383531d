"""Boxes of every type, stride and offset, for the tests of digests."""

from __future__ import annotations

import torch
from hypothesis import assume
from hypothesis import strategies as st

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.float64)
LONGEST = 9
"""Of a box's axes, in elements."""


def random_bytes(count: int, seed: int = 0) -> torch.Tensor:
    """uint8 [count]."""
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@st.composite
def boxes(draw: st.DrawFn, least: int = 0) -> torch.Tensor:
    """A view of random bytes on the CPU: up to four axes, sliced with steps, permuted, expanded, at any offset.

    Args:
        least: elements that it has at least.
    """
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0 if least == 0 else 1, LONGEST), max_size=4))
    offset = draw(st.integers(0, 9))
    count = offset + torch.Size(shape).numel()
    flat = random_bytes(count * dtype.itemsize, draw(st.integers(0, 9))).view(dtype)[offset:]
    view = flat.view(shape)
    for axis, length in enumerate(shape):
        start = draw(st.integers(0, max(0, length - 1)))
        stop = draw(st.integers(min(start + 1, length), length))
        view = view[(slice(None),) * axis + (slice(start, stop, draw(st.integers(1, 3))),)]
    view = view.permute(draw(st.permutations(range(view.dim()))))
    if draw(st.booleans()):
        view = view.unsqueeze(0).expand(2, *view.shape)
    assume(view.numel() >= least)
    return view


def like(view: torch.Tensor, device: str) -> torch.Tensor:
    """The same view, strides and offset included, of a copy of its storage on a device."""
    whole = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())
    return whole.to(device).as_strided(view.shape, view.stride(), view.storage_offset())


def content(view: torch.Tensor) -> bytes:
    """The bytes in row-major order."""
    flat = torch.empty(view.numel(), dtype=view.dtype)
    flat.view(view.shape).copy_(view)
    return flat.view(torch.uint8).numpy().tobytes()
