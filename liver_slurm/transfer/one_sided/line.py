"""The line between a receiver and an owner: a connection on which the receiver asks for words and for ranges of boxes.

Words always go over it; boxes do where the owner's memory cannot be read directly. An owner answers in a thread of its
own (:mod:`~liver_slurm.transfer.one_sided.service`), one question after the other.
"""

from __future__ import annotations

import select
import struct
import threading
from collections.abc import Callable
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.checksum import memory
from liver_slurm.transfer.connections import Connections, receive_exactly
from liver_slurm.transfer.one_sided.memory_ranges import Ranges
from liver_slurm.transfer.one_sided.socket_memory import receive
from liver_slurm.transfer.one_sided.words import HEADER_BYTES, Header, decode

QUESTION = struct.Struct("<QQ")
"""What is asked, and a number: of the word, or how many items follow."""
ITEM_FIELDS = 3
"""Of each item, 64 bits each: number of a tensor that the owner has described, first element, number of elements."""
MOST_ITEMS = 1 << 16
COUNTER, LOG, FIRST_BOX = 0, 1, 2
"""Numbers of the owner's update counter, of its log's, and of the first tensor of the first box."""

Items = NDArray[np.uint64]


class Question(IntEnum):
    """What a receiver asks."""

    WORD = 1
    """The word of that number, counted from 0: waited for."""
    READ = 2
    """Some ranges of tensors: their bytes are the answer, one after the other."""
    TURN = 3
    """Nothing, but that the owner turns its agent's wheels until the next question: so many boxes, from the first on,
    are being read by RDMA, which on some wires takes both ends."""
    REST = 4
    """Nothing: the wheels may stand."""


class Line:
    """The receiver's end. Any thread may call: questions may be asked while an earlier one is being answered."""

    def __init__(self, connections: Connections, peer: int) -> None:
        """Dials the owner.

        Raises:
            TransferError: it is gone.
        """
        self.peer, self._connection = peer, connections.outgoing(peer)
        self._gone = select.poll()
        self._gone.register(self._connection, select.POLLRDHUP)
        self._asking, self._changed = threading.Lock(), threading.Condition()
        self._asked = self._answered = self._heard = 0
        self._failure: OSError | None = None

    def hear(self) -> Header:
        """Return the next word, of which the content is still to be taken by :meth:`content`; no range may be being
        read.

        Raises:
            TransferError: the owner is gone, or the transfer was given up; or it is no word.
        """
        header = bytearray(HEADER_BYTES)
        question = QUESTION.pack(Question.WORD, self._heard)
        self._ask(question, lambda: receive_exactly(self._connection, memoryview(header)))
        self._heard += 1
        return decode(header)

    def content(self, nbytes: int) -> torch.Tensor:
        """Read so many bytes behind a word's header."""
        data = torch.empty(nbytes, dtype=torch.uint8)
        self._ask(b"", lambda: receive_exactly(self._connection, memory(data)))
        return data

    def read(self, items: Items, into: Ranges) -> None:
        """Read ranges of the owner's tensors; those of memory here are as many bytes in all.

        Raises:
            TransferError: as for :meth:`hear`.
        """
        question = QUESTION.pack(Question.READ, len(items)) + items.tobytes()
        self._ask(question, lambda: receive(self._connection, into))

    def turned(self, boxes: int, work: Callable[[], None]) -> None:
        """Do something while the owner turns its agent's wheels; see :class:`Question`."""

        failures: list[TransferError] = []

        def turn() -> None:
            self._connection.sendall(QUESTION.pack(Question.TURN, boxes))
            try:
                work()
            except TransferError as error:  # of what was to be done; the line can go on
                failures.append(error)
            self._connection.sendall(QUESTION.pack(Question.REST, 0))

        with self._asking:  # another question would end it
            number = self._asked
            self._asked += 1
            self._take(number, turn)
        if failures:
            raise failures[0]

    def hung_up(self) -> bool:
        """Return whether the owner is gone, or the transfer was given up."""
        return bool(self._gone.poll(0))

    def _ask(self, question: bytes, take: Callable[[], None]) -> None:
        """Ask, and take the answer when all earlier ones are taken: so the owner always has something to send."""
        with self._asking:
            number = self._asked
            self._asked += 1
            if question:  # even an empty one is refused where the owner has said its last
                self._guarded(lambda: self._connection.sendall(question))
        self._take(number, take)

    def _take(self, number: int, take: Callable[[], None]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._answered == number or self._failure is not None)
        self._guarded(take)
        with self._changed:
            self._answered += 1
            self._changed.notify_all()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            if self._failure is not None:
                raise self._failure
            work()
        except BaseException as error:
            with self._changed:
                self._failure = error if isinstance(error, OSError) else ConnectionResetError("it was given up")
                self._changed.notify_all()
            if isinstance(error, OSError):
                raise TransferError(f"worker {self.peer} went away while its state was read: {error}") from error
            raise
