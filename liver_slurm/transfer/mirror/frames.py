"""What goes from an owner to the keeper of its mirror: a description, then gradients for each update.

Before an owner joins the reduction after which any rank may begin an update, its keeper has acknowledged the gradients
of it. So an update that some rank has begun can be made at every mirror, too, and no step is lost with its owner.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from enum import IntEnum
from itertools import accumulate
from typing import NamedTuple

import msgspec
import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Replica, TrainedBox
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import ITEMSIZE, KNOWN, STATE_DTYPE, Piece, state_dtype
from liver_slurm.transfer.checksum import digest
from liver_slurm.transfer.optimizer_replay import GRADIENT_BYTES

_HEADER = struct.Struct("<qqqqqqQ")
HEADER_BYTES = _HEADER.size
LONGEST_DESCRIPTION = 1 << 28
"""Bytes; no description is longer."""
ACKNOWLEDGEMENT = struct.Struct("<q")
"""The step whose frame has arrived whole; of a proof that did not hold, the complement of that."""


class Kind(IntEnum):
    """What a frame says."""

    DESCRIPTION = 1
    """What the mirror is of; ``nbytes`` of msgpack follow."""
    GRADIENTS = 2
    """The update of step ``step`` can be made. Hyperparameters follow, the gradients of the first ``last`` boxes, and
    the state, as it is before the update, of those from ``first`` on."""
    SKIPPED = 3
    """Step ``step`` makes no update, because its gradient is not finite."""
    MADE = 4
    """The update of step ``step`` is made."""
    STATE = 5
    """All of the state after ``step`` completed steps follows, and then the digest of it; see
    :mod:`liver_slurm.transfer.mirror.snapshot`."""
    PRIMED = 6
    """All of the state after ``step`` completed steps follows: an update of it comes later."""
    PROOF = 7
    """The digests of the state after ``step`` completed steps follow; see :mod:`liver_slurm.transfer.mirror.proof`."""
    SHARED = 8
    """The description follows, ``nbytes`` of it, and ``last`` bytes that say where snapshots will lie in memory of this
    machine. It is acknowledged with 1 if the keeper has mapped them, and with 0 if they are to be sent."""


class Header(NamedTuple):
    """``updates``: made before this step. ``nbytes``: of the description, the hyperparameters, or the digests.
    ``digest``: of the gradients and state that follow."""

    kind: Kind
    step: int = 0
    updates: int = 0
    first: int = 0
    last: int = 0
    nbytes: int = 0
    digest: int = 0

    def encode(self) -> bytes:
        """Encode the frame as it goes over the connection."""
        return _HEADER.pack(*self)

    @classmethod
    def decode(cls, data: bytes | bytearray) -> Header:
        """Undo :meth:`encode`.

        Raises:
            TransferError: it is no header.
        """
        kind, *numbers = _HEADER.unpack(data)
        if kind not in set(Kind) or min(numbers) < 0:
            raise TransferError("a mirror's owner sent what is no frame")
        return cls(Kind(kind), *numbers)


class BoxDescription(msgspec.Struct, frozen=True, array_like=True):
    """A trained box, or, with a ``dtype``, a weight that is not trained."""

    tensor: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    group: tuple[float, float]
    dtype: str = ""
    moments: tuple[str, ...] = ()
    moment_dtype: str = STATE_DTYPE

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Of each tensor of it: of a weight, or of the master and the moments of a trained box."""
        kinds = ("master", *self.moments)
        return (self.dtype,) if self.dtype else tuple(state_dtype(kind, self.moment_dtype) for kind in kinds)

    @property
    def elements(self) -> int:
        """Of each of its tensors."""
        return math.prod(self.shape)

    @property
    def piece(self) -> Piece:
        """Its place in the world's state."""
        return Piece(self.tensor, self.offset, self.shape)


def digest_of(parts: Sequence[torch.Tensor]) -> int:
    """Return one digest of several runs of host memory, which depends on their order."""
    found = 0
    for part in parts:
        found = ((found << 1 | found >> 63) ^ digest(part, "xxh3")) & (1 << 64) - 1
    return found


def describe(replica: Replica) -> bytes:
    """Return the boxes of a rank's state, in the order in which frames have them."""
    trained = [
        BoxDescription(
            *box.piece, (box.group.wd_mult, box.group.lr_mult), moments=box.moments, moment_dtype=box.moment_dtype
        )
        for box in replica.trained
    ]
    fixed = [
        BoxDescription(*piece, (0.0, 0.0), str(view.dtype).removeprefix("torch.")) for piece, view in replica.fixed
    ]
    return msgspec.msgpack.encode([*trained, *fixed])


def decode_description(data: bytes | bytearray) -> list[BoxDescription]:
    """Undo :func:`describe`.

    Raises:
        TransferError: it is no description.
    """
    try:
        boxes = msgspec.msgpack.decode(data, type=list[BoxDescription])
    except msgspec.DecodeError as error:
        raise TransferError(f"a mirror's owner sent no description: {error}") from error
    for box in boxes:
        if (
            not {*box.dtypes} <= {*ITEMSIZE}
            or len(box.offset) != len(box.shape)
            or (not box.dtype and not (box.moments and KNOWN.issuperset(box.moments)))
            or min((0, *box.offset, *box.shape)) < 0
        ):
            raise TransferError(f"a mirror's owner sent no description: {box.tensor}")
    return boxes


def room_for(boxes: Sequence[BoxDescription]) -> int:
    """Return the bytes of host memory that a mirror takes."""
    gradients = sum(box.elements * GRADIENT_BYTES for box in boxes if not box.dtype)
    return gradients + sum(box.elements * ITEMSIZE[dtype] for box in boxes for dtype in box.dtypes)


class Room:
    """Host memory for a mirror: state and gradients of all boxes, each kind in one run."""

    def __init__(self, boxes: Sequence[BoxDescription]) -> None:
        """
        Raises:
            TransferError: not all trained boxes have moments of one kind.
        """
        trained, fixed = [box for box in boxes if not box.dtype], [box for box in boxes if box.dtype]
        self.ends = [0, *accumulate(box.elements for box in trained)]
        alike = {box.dtypes for box in trained} or {()}
        if len(alike) > 1:
            raise TransferError("a mirror's owner described boxes that are not kept alike")
        self.state = [torch.zeros(self.ends[-1], dtype=getattr(torch, dtype)) for dtype in alike.pop()]
        """Masters, then each kind of moments."""
        self.gradients = torch.zeros(self.ends[-1])
        weights = [(box.piece, torch.zeros(box.shape, dtype=getattr(torch, box.dtype))) for box in fixed]
        self.replica = Replica([self._box(number, box) for number, box in enumerate(trained)], weights)
        self.boxes = len(trained)
        self.nbytes = room_for(boxes)

    def _box(self, number: int, box: BoxDescription) -> TrainedBox:
        place = slice(self.ends[number], self.ends[number + 1])
        state = tuple(kind[place].view(box.shape) for kind in self.state)
        gradient = self.gradients[place].view(box.shape)
        return TrainedBox(box.piece, state, lambda: gradient, GroupSpec(*box.group), box.moments)
