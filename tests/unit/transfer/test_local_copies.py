"""What stays on a worker is copied and proven, and what both worlds keep in one storage is left alone."""

from __future__ import annotations

import pytest
import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.reshard.tensors import Move, Piece
from liver_slurm.transfer.box_index import BoxIndex
from liver_slurm.transfer.local_copies import LocalCopies

CPU = torch.device("cpu")
SHAPES = {"large": (400, 50), "small": (3, 5), "half": (7,)}
Boxes = dict[str, torch.Tensor]


def copies(source: Boxes, target: Boxes) -> LocalCopies:
    moves = [Move(name, 0, 0, (0,) * view.dim(), tuple(view.shape)) for name, view in source.items()]
    index = [
        BoxIndex((Piece(name, (0,) * view.dim(), tuple(view.shape)), view) for name, view in side.items())
        for side in (source, target)
    ]
    return LocalCopies(moves, *index, CPU)


def held() -> Boxes:
    found = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    return {**found, "half": found["half"].bfloat16()}


def test_what_stays_is_copied_and_what_lies_there_already_is_left_alone() -> None:
    # LS-3
    source = held()
    target = {
        "large": source["large"],
        "small": torch.zeros(3, 10)[:, ::2],
        "half": torch.zeros(7, dtype=torch.bfloat16),
    }
    made = copies(source, target)
    made.copy()
    made.prove()
    assert all(torch.equal(target[name], source[name]) for name in SHAPES)
    assert (made.nbytes, made.digests_checked) == (60 + 14, 2)


def test_a_copy_that_is_another_is_found() -> None:
    # LS-12
    source = held()
    target = {name: torch.zeros_like(view) for name, view in source.items()}
    made = copies(source, target)
    made.copy()
    target["small"][1, 1] += 1
    with pytest.raises(
        TransferError, match=r"^small at \(.*\): the digest of a box that was copied inside this worker differs$"
    ):
        made.prove()


def test_nothing_to_copy_is_nothing_to_prove() -> None:
    made = copies({}, {})
    made.copy()
    made.prove()
    assert (made.nbytes, made.digests_checked) == (0, 0)
