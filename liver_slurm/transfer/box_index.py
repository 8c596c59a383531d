"""Finds the storage of any box inside what a rank holds, in the way that each mode names state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Replica, TrainedBox
from liver_slurm.reshard.tensors import STATE_DTYPE, Piece, inside, replayable, state_tensors
from liver_slurm.transfer.shared_box import SharedBox


class Index(Protocol):
    """Boxes of one rank."""

    def shared(self, piece: Piece) -> SharedBox:
        """Return the box.

        Raises:
            TransferError: no held piece contains it.
        """


class BoxIndex:
    """Mode pause: every tensor of the state is for itself."""

    def __init__(self, boxes: Iterable[tuple[Piece, torch.Tensor]]) -> None:
        self._boxes: dict[str, list[tuple[Piece, torch.Tensor]]] = {}
        for piece, view in boxes:
            self._boxes.setdefault(piece.tensor, []).append((piece, view))

    def shared(self, piece: Piece) -> SharedBox:
        for held, view in self._boxes.get(piece.tensor, ()):
            place = inside(piece.offset, piece.shape, held)
            if place is not None:
                return SharedBox((view[place],), names=(piece.tensor,), offset=piece.offset)
        raise _not_held(piece)


class ReplicaIndex:
    """Mode overlap: a master stands for its moments, too; a weight that is not trained for itself."""

    def __init__(self, replica: Replica | None) -> None:
        self._trained: dict[str, list[TrainedBox]] = {}
        for box in replica.trained if replica is not None else ():
            self._trained.setdefault(box.piece.tensor, []).append(box)
        self._fixed = BoxIndex(replica.fixed if replica is not None else ())

    def shared(self, piece: Piece) -> SharedBox:
        if not piece.tensor.endswith("@master"):
            return self._fixed.shared(piece)
        for box in self._trained.get(piece.tensor.removesuffix("@master"), ()):
            found = box.part(piece.offset, piece.shape)
            if found is not None:
                names = state_tensors(box.piece.tensor, STATE_DTYPE, derived=True, moments=box.moments)
                # without a gradient it is read when training stands
                gradient = found.gradient() if replayable(box.moments) else None
                return SharedBox(found.state, gradient, found.group, names, piece.offset)
        raise _not_held(piece)


def speaks(tensor: str) -> bool:
    """Return whether a tensor of the plan is one that :class:`ReplicaIndex` knows."""
    return tensor.endswith("@master") or "@" not in tensor


def _not_held(piece: Piece) -> TransferError:
    return TransferError(f"{piece.tensor}: the box at {piece.offset} of shape {piece.shape} is not held here")
