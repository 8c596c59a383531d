"""Tensors that were stored in flat parts."""

from __future__ import annotations

import pytest
import torch

from liver_slurm.engine.torch_dist.flattened import is_flattened, put_together


@pytest.mark.parametrize("parts", [(1, 1), (2, 1), (1, 3), (4, 2), (8, 6)])
def test_parts_are_put_together(parts: tuple[int, int]) -> None:
    whole = torch.arange(48).view(8, 6)
    flat = torch.stack(
        [torch.stack([one.flatten() for one in row.chunk(parts[1], 1)]) for row in whole.chunk(parts[0], 0)]
    )
    assert is_flattened(tuple(flat.shape), (8, 6))
    assert torch.equal(put_together(flat, (8, 6)), whole)


def test_vectors_have_one_axis_of_parts() -> None:
    assert is_flattened((2, 4), (8,))
    assert torch.equal(put_together(torch.arange(8).view(2, 4), (8,)), torch.arange(8))


@pytest.mark.parametrize("stored", [(8, 6), (1, 1, 47), (3, 1, 16), (0, 1, 48), (1, 48), (1, 1, 1, 48), ()])
def test_other_shapes_are_not(stored: tuple[int, ...]) -> None:
    assert not is_flattened(stored, (8, 6))
