"""State of a distributed optimizer as megatron-core before 0.14 saved it: each rank's part of a tensor is flat.

It called that ``fully_sharded_model_space``. A tensor that was cut into ``f0 * f1`` parts has the shape ``[f0, f1, n]``
there, whatever ranks had of the ``n`` elements of a part.
"""

from __future__ import annotations

import math

import torch

Shape = tuple[int, ...]


def is_flattened(stored: Shape, shape: Shape) -> bool:
    """Return whether a tensor of this shape can have been stored in parts that are flat."""
    parts, elements = stored[:-1], stored[-1:]
    if (
        len(parts) != len(shape)
        or not all(parts)
        or any(whole % part for whole, part in zip(shape, parts, strict=True))
    ):
        return False
    return elements == (math.prod(shape) // math.prod(parts),)


def put_together(flat: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Return the tensor of which these are the parts."""
    parts = flat.shape[:-1]
    local = [whole // part for whole, part in zip(shape, parts, strict=True)]
    axes = [axis for first in range(len(shape)) for axis in (first, len(shape) + first)]
    return flat.view(*parts, *local).permute(axes).reshape(shape)
