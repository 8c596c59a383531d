"""Finds the storage of any box inside what a rank holds, in the way that each mode names state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Replica
from liver_slurm.reshard.tensors import STATE_DTYPE, Box, Piece, inside, replayable, state_tensors
from liver_slurm.transfer.shared_box import SharedBox

_Each = TypeVar("_Each")


class Index(Protocol):
    """Boxes of one rank."""

    def shared(self, piece: Piece) -> SharedBox:
        """Return the box.

        Raises:
            TransferError: no held piece contains it.
        """


class PieceIndex(Generic[_Each]):
    """Finds the piece that a box lies in, and what is known of it.

    A rank may hold thousands of pieces of one tensor, as of its layers and experts. On the leading axes on which each
    of them has one element, a box inside one has the same offsets.
    """

    def __init__(self, pieces: Iterable[tuple[Piece, _Each]]) -> None:
        by_tensor: dict[str, list[tuple[Piece, _Each]]] = defaultdict(list)
        for piece, known in pieces:
            by_tensor[piece.tensor].append((piece, known))
        self._leading = {name: min(_single(piece.shape) for piece, _ in some) for name, some in by_tensor.items()}
        self._near: dict[tuple[str, Box], list[tuple[Piece, _Each]]] = defaultdict(list)
        for name, some in by_tensor.items():
            for piece, known in some:
                self._near[name, piece.offset[: self._leading[name]]].append((piece, known))

    def around(self, tensor: str, offset: Box, shape: Box) -> tuple[tuple[slice, ...], _Each] | None:
        """Return where the box lies in an array of its piece's shape, and what is known of that; None: in none."""
        for piece, known in self._near.get((tensor, offset[: self._leading.get(tensor, 0)]), ()):
            place = inside(offset, shape, piece)
            if place is not None:
                return place, known
        return None


def _single(shape: Box) -> int:
    """Return how many leading axes have one element."""
    return next((axis for axis, extent in enumerate(shape) if extent != 1), len(shape))


class BoxIndex:
    """Mode pause: every tensor of the state is for itself."""

    def __init__(self, boxes: Iterable[tuple[Piece, torch.Tensor]]) -> None:
        self._boxes = PieceIndex(boxes)

    def shared(self, piece: Piece) -> SharedBox:
        found = self._boxes.around(*piece)
        if found is None:
            raise _not_held(piece)
        place, view = found
        return SharedBox((view[place],), names=(piece.tensor,), offset=piece.offset)


class ReplicaIndex:
    """Mode overlap: a master stands for its moments, too; a weight that is not trained for itself."""

    def __init__(self, replica: Replica | None) -> None:
        self._trained = PieceIndex((box.piece, box) for box in (replica.trained if replica is not None else ()))
        self._fixed = BoxIndex(replica.fixed if replica is not None else ())

    def shared(self, piece: Piece) -> SharedBox:
        if not piece.tensor.endswith("@master"):
            return self._fixed.shared(piece)
        around = self._trained.around(piece.tensor.removesuffix("@master"), piece.offset, piece.shape)
        found = around[1].part(piece.offset, piece.shape) if around is not None else None
        if found is None:
            raise _not_held(piece)
        names = state_tensors(found.piece.tensor, STATE_DTYPE, derived=True, moments=found.moments)
        # without a gradient it is read when training stands
        gradient = found.gradient() if replayable(found.moments) else None
        return SharedBox(found.state, gradient, found.group, names, piece.offset)


def speaks(tensor: str) -> bool:
    """Return whether a tensor of the plan is one that :class:`ReplicaIndex` knows."""
    return tensor.endswith("@master") or "@" not in tensor


def _not_held(piece: Piece) -> TransferError:
    return TransferError(f"{piece.tensor}: the box at {piece.offset} of shape {piece.shape} is not held here")
