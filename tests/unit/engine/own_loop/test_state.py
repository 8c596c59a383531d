"""How a tensor is divided is told by its placements: by its shape, one that lies on one rank whole looks replicated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import Placement, Replicate, Shard

from liver_slurm.engine.own_loop.state import _held_of, held


def placed(mesh: tuple[int, ...], place: list[int], placements: tuple[Placement, ...], rows: int) -> Any:
    """A tensor of one row and three columns, of which so many rows are here."""
    part = torch.zeros(rows, 3)
    device_mesh = SimpleNamespace(shape=mesh, get_coordinate=lambda: place)
    return SimpleNamespace(
        shape=(1, 3), dim=lambda: 2, placements=placements, device_mesh=device_mesh, detach=lambda: part
    )


@pytest.mark.parametrize(
    ("mesh", "place", "placements", "rows", "replicated"),
    [
        ((2,), [0], (Shard(0),), 1, False),
        ((2,), [1], (Shard(0),), 0, False),
        ((1,), [0], (Shard(0),), 1, True),
        ((2,), [0], (Replicate(),), 1, True),
        ((2, 2), [1, 0], (Replicate(), Shard(0)), 1, False),
        ((2, 1), [1, 0], (Replicate(), Shard(0)), 1, True),
    ],
)
def test_one_row_among_ranks(
    mesh: tuple[int, ...], place: list[int], placements: tuple[Placement, ...], rows: int, replicated: bool
) -> None:
    found = _held_of("row", placed(mesh, place, placements, rows))
    assert (found.replicated, found.whole) == (replicated, rows == 1)


def test_a_plain_tensor_is_the_same_everywhere() -> None:
    assert held("plain", torch.zeros(2)).replicated
