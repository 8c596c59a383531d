"""Messages of overlap: a header that says what follows and for which version, then as many bytes as it says."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.transports.base import Pending, Transport

_FIELDS = 5
_ALIGNMENT = 4
HEADER_BYTES = 8 * _FIELDS


class Kind(IntEnum):
    """What a message carries."""

    STATE = 1
    """Boxes as they are at ``version``."""
    GROUPS = 2
    """What the update to ``version`` uses for each group of parameters; ``number``: updates before it."""
    GRADIENT = 3
    """Gradients of the update to ``version``, of boxes that were sent."""
    END = 4
    """Everything sent is at ``version``; ``number``: updates made by then."""
    DIGESTS = 5
    """Digests of all boxes at the last version, in the order in which the plan moves them, taken at the source."""
    OPEN = 6
    """The state is at ``version`` and may be read until the next update."""
    UPDATING = 7
    """The update to ``version`` has begun, and its gradients may be read from now on; ``number``: updates before it. It
    is followed by what the update uses for each group of parameters."""
    CURRENT = 8
    """The state is at ``version``, the last one, and may be read; ``number``: updates made by then."""


class Header(NamedTuple):
    """``number``: of the chunk, or what :class:`Kind` says; ``nbytes``: of what follows."""

    kind: Kind
    number: int
    version: int
    nbytes: int


_MAGIC = 0x11FE2


def encode(header: Header) -> torch.Tensor:
    """As uint8."""
    return torch.tensor([_MAGIC, *header], dtype=torch.int64).view(torch.uint8)


def decode(data: torch.Tensor) -> Header:
    """Inverse of :func:`encode`.

    Raises:
        TransferError: it is no header.
    """
    magic, kind, number, version, nbytes = data.view(torch.int64).tolist()
    if magic != _MAGIC or kind not in set(Kind):
        raise TransferError("a message that is no part of this transfer has arrived")
    return Header(Kind(kind), number, version, nbytes)


class Slots:
    """A few staging buffers in host memory, made when first needed; threads wait for a free one, or for a part of one.

    A part is a third: what the gradients of a chunk take whose state fills a slot.
    """

    _PARTS = 3

    def __init__(self, count: int, nbytes: int, pinned: bool) -> None:
        self.nbytes, self._pinned = nbytes, pinned
        self._part_bytes = nbytes // self._PARTS // _ALIGNMENT * _ALIGNMENT
        self._changed = threading.Condition()
        self._made = 0
        self._free: list[torch.Tensor | None] = [None] * count
        self._parts: list[torch.Tensor] = []
        """Free ones of slots that are lent in parts."""

    @property
    def peak_bytes(self) -> int:
        """Bytes of the buffers that were needed."""
        return self._made * self.nbytes

    @property
    def free(self) -> int:
        """Whole buffers that nobody has."""
        return len(self._free)

    def take(self, nbytes: int | None = None) -> torch.Tensor:
        """A free buffer of so many bytes, default: a whole one; waits for it."""
        nbytes = self.nbytes if nbytes is None else nbytes
        small = nbytes <= self._part_bytes
        with self._changed:
            self._changed.wait_for(lambda: self._free or (small and self._parts))
            if small:
                return self._part()[:nbytes]
            return self._whole()[:nbytes]

    def _whole(self) -> torch.Tensor:
        buffer = self._free.pop()
        if buffer is None:
            self._made += 1
            buffer = torch.empty(self.nbytes, dtype=torch.uint8, pin_memory=self._pinned)
        return buffer

    def _part(self) -> torch.Tensor:
        if not self._parts:
            self._parts += self._whole()[: self._PARTS * self._part_bytes].split(self._part_bytes)
        return self._parts.pop()

    def give(self, buffer: torch.Tensor) -> None:
        """What :meth:`take` gave is free again."""
        storage = buffer.untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        with self._changed:
            if buffer.numel() <= self._part_bytes:
                self._parts.append(whole[buffer.storage_offset() :][: self._part_bytes])
                others = [part for part in self._parts if part.untyped_storage().data_ptr() != storage.data_ptr()]
                if len(self._parts) - len(others) == self._PARTS:
                    self._parts = others
                    self._free.append(whole)
            else:
                self._free.append(whole)
            self._changed.notify_all()

    def release(self) -> None:
        """Give the memory of all buffers back; none may be in use."""
        with self._changed:
            self._free = [None] * len(self._free)


class Outbox:
    """Messages of one thread, a few in flight, in order."""

    def __init__(self, transport: Transport, window: int) -> None:
        self._transport, self._window = transport, window
        self._posted: deque[tuple[Pending, list[torch.Tensor], Callable[[], None] | None]] = deque()
        self.bytes_sent: int = 0

    def post(
        self, peer: int, header: Header, payload: torch.Tensor | None, after: Callable[[], None] | None = None
    ) -> None:
        """Send a message; ``after`` is called, by a later call of this object, once ``payload`` may be used again."""
        parts = [encode(header)] if payload is None else [encode(header), payload]
        # The buffers must live until they have left.
        self._posted.append((self._transport.send(peer, *parts), parts, after))
        self.bytes_sent += 0 if payload is None else payload.numel()

    def make_room(self) -> None:
        """Wait until one more message may be in flight."""
        while len(self._posted) >= self._window:
            self.finish_one()

    def flush(self) -> None:
        """Wait until all messages have left."""
        while self._posted:
            self.finish_one()

    def finish_one(self) -> None:
        """Wait until the oldest message has left."""
        pending, _, after = self._posted.popleft()
        pending.wait()
        if after is not None:
            after()
