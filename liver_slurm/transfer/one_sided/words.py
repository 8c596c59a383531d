"""Words of an owner: a header that says what is the case at which version, and how many bytes follow it."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from liver_slurm.base.errors import TransferError

_HEADER = struct.Struct("<qqqqq")
_MAGIC = 0x11FE3
HEADER_BYTES = _HEADER.size


class Kind(IntEnum):
    """What a word says."""

    OPEN = 1
    """The state is at ``version`` and may be read until the next update; ``number``: of how many boxes."""
    UPDATING = 2
    """The update to ``version`` has begun, and its gradients may be read from now on; ``number``: updates before it. It
    is followed by what the update uses for each group of parameters."""
    CURRENT = 3
    """The state is at ``version``, the last one, and may be read; ``number``: updates made by then."""
    DIGESTS = 4
    """Digests of all boxes at the last version, in the order in which the plan moves them, taken at the source."""


class Header(NamedTuple):
    """``number``: what :class:`Kind` says; ``nbytes``: of what follows."""

    kind: Kind
    number: int
    version: int
    nbytes: int


def encode(header: Header) -> bytes:
    """Encode the word as it goes over the line."""
    return _HEADER.pack(_MAGIC, *header)


def decode(data: bytes | bytearray) -> Header:
    """Undo :func:`encode`.

    Raises:
        TransferError: it is no header.
    """
    magic, kind, number, version, nbytes = _HEADER.unpack(data)
    if magic != _MAGIC or kind not in set(Kind):
        raise TransferError("a word that is none has arrived")
    return Header(Kind(kind), number, version, nbytes)
