"""A snapshot in memory that its keeper has mapped, and so still has after its owner's end: nothing of it is sent.

In front of the snapshot lies which step it is of, and the digests of its tensors. The owner takes the step away before
it writes anything else, and writes it when all the rest is written. So whatever the owner was doing when it died, a
place that says a step has all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.mirror.frames import BoxDescription
from liver_slurm.transfer.mirror.host_room import PAGE
from liver_slurm.transfer.mirror.snapshot import DIGEST_BYTES, parts_of, room_of

_WORD = 8
"""Bytes of the step."""


class SharedPlace:
    """One snapshot and what it says of itself, in either process."""

    def __init__(self, boxes: Sequence[BoxDescription], memory: torch.Tensor) -> None:
        """
        Args:
            memory: of at least :func:`place_of` bytes.

        Raises:
            TransferError: it has fewer.
        """
        head = _head_of(boxes)
        if memory.numel() < place_of(boxes):
            raise TransferError(f"a place of {memory.numel()} bytes is too small for a snapshot")
        # torch's own writes may come in several parts; one of an aligned word of numpy's does not.
        self._step = memory[:_WORD].numpy().view("<i8")
        self._digests = memory[_WORD : _WORD + _digest_bytes(boxes)]
        self.data = memory[head : place_of(boxes)]
        """The snapshot, see :func:`~liver_slurm.transfer.mirror.snapshot.parts_of`."""

    @property
    def step(self) -> int:
        """Steps completed in the snapshot; -1: there is none, or not all of it."""
        return int(self._step[0]) - 1  # new memory is zeros, and says none

    @property
    def digests(self) -> bytes:
        """Digests of the state that it is of, see :mod:`liver_slurm.transfer.mirror.proof`."""
        return bytes(self._digests.numpy())

    def give_up(self) -> None:
        """Say that there is none, as it is written over from now on."""
        self._step[0] = 0

    def written(self, step: int, digests: bytes) -> None:
        """Say what it is, as all of it is there."""
        self._digests.copy_(torch.frombuffer(bytearray(digests), dtype=torch.uint8))
        self._step[0] = step + 1


def place_of(boxes: Sequence[BoxDescription]) -> int:
    """Return the bytes that a place takes; nobody needs one for a state without tensors."""
    return _head_of(boxes) + room_of(parts_of(boxes))


def _digest_bytes(boxes: Sequence[BoxDescription]) -> int:
    return DIGEST_BYTES * (len(parts_of(boxes)) + 1)


def _head_of(boxes: Sequence[BoxDescription]) -> int:
    return -(-(_WORD + _digest_bytes(boxes)) // PAGE) * PAGE
