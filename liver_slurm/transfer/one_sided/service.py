"""The owner's end of the line to one receiver: a thread that says the owner's words and sends ranges of its boxes.

The receiver names tensors by number, among those that were described to it, and elements by number: no address comes
off the wire, and who asks for what there is not is hung up on. Boxes in host memory are sent from where they lie; those
on a card pass through pinned memory, in a stream of their own.
"""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from liver_slurm.base.errors import LiverError, TransferError
from liver_slurm.reshard.tensors import flat_boxes
from liver_slurm.transfer.checksum import memory
from liver_slurm.transfer.connections import Connections, hang_up, receive_exactly
from liver_slurm.transfer.one_sided.description import view_of
from liver_slurm.transfer.one_sided.line import COUNTER, FIRST_BOX, ITEM_FIELDS, LOG, MOST_ITEMS, QUESTION, Question
from liver_slurm.transfer.one_sided.memory_ranges import ranges, single
from liver_slurm.transfer.one_sided.network import decode_items
from liver_slurm.transfer.one_sided.socket_memory import send
from liver_slurm.transfer.one_sided.staging import Staging
from liver_slurm.transfer.one_sided.words import Header, encode
from liver_slurm.transfer.shared_box import SharedBox

_log = logging.getLogger(__name__)

Word = tuple[Header, torch.Tensor | None]
"""What is said, and its content."""
_Item = tuple[int, int, int]


class Answers(NamedTuple):
    """What an owner has to say."""

    counters: tuple[torch.Tensor, torch.Tensor]
    """Its update counter, and its log's."""
    gradient: Callable[[SharedBox], torch.Tensor]
    """Where the last update's gradient of a box is to be read."""
    word: Callable[[int, int], Word | None]
    """The word of that number for a peer, waited for; None: there will be none any more."""
    told: Callable[[int, Header], None]
    """Called when a peer was told a word."""
    turn: Callable[[], None] | None = None
    """Turns the wheels of a nixl agent once; None: there is none."""


class Service:
    def __init__(
        self,
        connections: Connections,
        peer: int,
        boxes: Sequence[SharedBox],
        answers: Answers,
        ended: Callable[[BaseException | None], None],
        staging: Staging,
    ) -> None:
        """
        Args:
            boxes: all that the receiver may read, in the order in which they were described to it.
            ended: called, in the thread, when the line has ended, with what it ended by.
            staging: that pinned memory for a card comes from.
        """
        self.peer, self._connections, self._boxes, self._staging = peer, connections, boxes, staging
        self._answers, self._ended = answers, ended
        self._counters = dict(zip((COUNTER, LOG), answers.counters, strict=True))
        # Of each number from FIRST_BOX on: the box, and which of its views; -1: its gradient.
        self._places = [
            (box, view)
            for box, each in enumerate(boxes)
            for view in (*range(len(each.state)), *([-1] if each.gradient is not None else []))
        ]
        self.asked = 0
        """How many boxes, from the first on, the receiver may have; see :meth:`forget`."""
        self._stream: Any = None
        self._pinned: list[torch.Tensor] = []
        self._thread = threading.Thread(target=self._run, name=f"serve-{peer}", daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """Forget what was read so far."""
        self.asked = 0

    def join(self) -> None:
        """Wait until the thread has ended, which it does when connections are given up and words end."""
        self._thread.join()

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            with torch.no_grad():
                self._answer()
        except OSError as error:
            failure = TransferError(f"worker {self.peer} went away while it read state here: {error}")
        except LiverError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - the thread's edge: whoever waits for the receiver raises it
            _log.exception("worker %d could not be answered", self.peer)
            failure = TransferError(f"worker {self.peer} could not be answered: {error!r}")
        if failure is not None:
            _log.info("%s", failure)
        self._ended(failure)

    def _answer(self) -> None:
        """Answer until the receiver, or this transfer, has ended.

        Raises:
            TransferError: the receiver asked for what there is not, or is gone.
            OSError: it is gone.
        """
        connection = self._connections.incoming(self.peer)
        try:
            question = bytearray(QUESTION.size)
            while True:
                receive_exactly(connection, memoryview(question))
                kind, number = QUESTION.unpack(question)
                if kind == Question.WORD:
                    said = self._answers.word(self.peer, number)
                    if said is None:
                        return
                    header, content = said
                    connection.sendall(encode(header))
                    if content is not None:
                        connection.sendall(memory(content))
                    self._answers.told(self.peer, header)
                elif kind == Question.READ and 0 < number <= MOST_ITEMS:
                    data = bytearray(8 * ITEM_FIELDS * number)
                    receive_exactly(connection, memoryview(data))
                    self._send(connection, [tuple(item) for item in decode_items(bytes(data)).tolist()])
                elif kind == Question.TURN and self._answers.turn is not None:
                    self.asked = max(self.asked, min(number, len(self._boxes)))
                    heard = select.poll()
                    heard.register(connection, select.POLLIN)
                    while not heard.poll(0):
                        self._answers.turn()
                elif kind != Question.REST:
                    raise TransferError(f"worker {self.peer} asked question {kind} about {number}, which is none")
        finally:
            hang_up(connection)

    def _send(self, connection: Any, items: Sequence[_Item]) -> None:
        tensors = [self._tensor(number) for number, _, _ in items]
        for tensor, (number, first, count) in zip(tensors, items, strict=True):
            if first + count > tensor.numel():
                raise TransferError(f"worker {self.peer} asked for elements of tensor {number} that there are not")
        if any(tensor.is_cuda for tensor in tensors):
            self._send_staged(connection, tensors, items)
            return
        found = [
            ranges(view_of(_box(tensor, offset, shape)))
            for tensor, (_, first, count) in zip(tensors, items, strict=True)
            for offset, shape in flat_boxes(tuple(tensor.shape), first, first + count)
        ]
        if found:
            send(connection, np.concatenate(found))

    def _tensor(self, number: int) -> torch.Tensor:
        if number in self._counters:
            return self._counters[number]
        if not FIRST_BOX <= number < FIRST_BOX + len(self._places):
            raise TransferError(f"worker {self.peer} asked for tensor {number}, which there is not")
        place, view = self._places[number - FIRST_BOX]
        box = self._boxes[place]
        if view < 0:
            return self._answers.gradient(box)
        self.asked = max(self.asked, place + 1)
        return box.state[view]

    def _send_staged(self, connection: Any, tensors: Sequence[torch.Tensor], items: Sequence[_Item]) -> None:
        """Through pinned memory: while one half is sent, the next is copied."""
        if not self._pinned:
            self._stream = torch.cuda.Stream(next(tensor.device for tensor in tensors if tensor.is_cuda))
            self._pinned = list(self._staging.pinned().chunk(2))
        half, filled = 0, 0
        copied: list[tuple[Any, torch.Tensor]] = []

        def flush() -> None:
            for event, buffer in copied:
                event.synchronize()
                send(connection, single(buffer.data_ptr(), buffer.numel()))
            copied.clear()

        for box in self._pieces(tensors, items, self._pinned[0].numel()):
            if filled + box.nbytes > self._pinned[half].numel():
                event, buffer = self._mark(), self._pinned[half][:filled]
                flush()
                copied.append((event, buffer))
                half, filled = 1 - half, 0
            place = self._pinned[half][filled : filled + box.nbytes]
            with torch.cuda.stream(self._stream):
                place.copy_(box.reshape(-1).view(torch.uint8), non_blocking=True)
            filled += box.nbytes
        event, buffer = self._mark(), self._pinned[half][:filled]
        flush()
        copied.append((event, buffer))
        flush()

    def _mark(self) -> Any:
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    @staticmethod
    def _pieces(tensors: Sequence[torch.Tensor], items: Sequence[_Item], most: int) -> Iterator[torch.Tensor]:
        """Yield the boxes of at most so many bytes."""
        for tensor, (_, first, count) in zip(tensors, items, strict=True):
            step = max(1, most // tensor.element_size())
            for begin in range(first, first + count, step):
                for offset, shape in flat_boxes(tuple(tensor.shape), begin, min(begin + step, first + count)):
                    yield _box(tensor, offset, shape)


def _box(tensor: torch.Tensor, offset: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    return tensor[tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))]
