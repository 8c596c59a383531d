"""What an owner answers over a line, to a receiver that asks for what is there, and to one that does not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_owner import Recipe, same_bytes
from scattered import pairs

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.one_sided.description import view_of
from liver_slurm.transfer.one_sided.handshake import describe
from liver_slurm.transfer.one_sided.line import FIRST_BOX, MOST_ITEMS, QUESTION, Line, Question
from liver_slurm.transfer.one_sided.memory_ranges import ranges
from liver_slurm.transfer.one_sided.network import NetworkReader
from liver_slurm.transfer.one_sided.service import Answers, Service, Word
from liver_slurm.transfer.one_sided.staging import Staging
from liver_slurm.transfer.one_sided.words import Header, Kind
from liver_slurm.transfer.shared_box import SharedBox

PATIENCE = 60.0
CPU = torch.device("cpu")


class Lab:
    """An owner that answers, and the line of one receiver."""

    def __init__(self, local: bool, boxes: list[SharedBox], turn: Callable[[], None] | None = None) -> None:
        store = dist.HashStore()
        self.owner, self.receiver = (Connections(store, me, 2, local, "lo") for me in (0, 1))
        self.counter = torch.tensor([6], dtype=torch.int64)
        self.log = torch.tensor([4], dtype=torch.int64)
        self.boxes, self.words = boxes, threading.Event()
        self.heard: list[Header] = []
        self.failure: BaseException | None = None
        self.ended = threading.Event()
        answers = Answers((self.counter, self.log), self.gradient, self.word, self.told, turn)
        self.service = Service(self.owner, 1, boxes, answers, self.end, Staging(1 << 16, 1))
        self.line = Line(self.receiver, 0)
        self.reader = NetworkReader(self.line, CPU, Staging(1 << 16, 1))
        self.views = [
            view
            for box in describe(boxes, self.counter).boxes
            for view in (*box.state, *([box.gradient] if box.gradient is not None else []))
        ]

    def gradient(self, box: SharedBox) -> torch.Tensor:
        assert box.gradient is not None
        return box.gradient

    def word(self, _peer: int, number: int) -> Word | None:
        self.words.wait(PATIENCE)
        return None if number else (Header(Kind.CURRENT, 1, 2, 0), None)

    def told(self, _peer: int, header: Header) -> None:
        self.heard.append(header)

    def end(self, failure: BaseException | None) -> None:
        self.failure = failure
        self.ended.set()

    def close(self) -> None:
        self.words.set()
        for end in (self.owner, self.receiver):
            end.give_up()
        self.service.join()
        for end in (self.owner, self.receiver):
            end.close()


BOXES = [SharedBox((torch.arange(12.0).view(3, 4),), torch.arange(12.0).view(4, 3).T), SharedBox((torch.ones(7),))]


@pytest.fixture(params=[False, True], ids=["tcp", "local"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    made = Lab(request.param, BOXES)
    yield made
    made.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(pairs(), min_size=1, max_size=5), st.data())
def test_every_range_of_every_view_arrives_bit_for_bit(some: list[tuple[Recipe, Recipe]], data: st.DataObject) -> None:
    # LS-3
    sources = [source.make() for source, _ in some]
    lab = Lab(True, [SharedBox((view,)) for view in sources])
    try:
        targets = [target.make() for _, target in some]
        lab.reader.copy(targets, lab.views)
        assert all(map(same_bytes, targets, sources))
        assert all(map(same_bytes, lab.reader.fetch(lab.views), sources))
        for source, view in zip(sources, lab.views, strict=True):
            if source.dim() and source.shape[0]:
                begin = data.draw(st.integers(0, source.shape[0] - 1))
                count = data.draw(st.integers(1, source.shape[0] - begin))
                (found,) = lab.reader.fetch([view.narrow(0, begin, count)])
                assert same_bytes(found, source.narrow(0, begin, count))
    finally:
        lab.close()


def test_counters_and_gradients_are_read_anew(lab: Lab) -> None:
    assert (lab.reader.counter(), lab.reader.stands(2), lab.reader.stands(3)) == (6, True, False)
    lab.counter.fill_(9)
    lab.log.fill_(6)
    assert (lab.reader.counter(), lab.reader.stands(3)) == (9, True)
    (found,) = lab.reader.fetch([lab.views[1]])
    assert torch.equal(found, BOXES[0].gradient)  # type: ignore[arg-type]
    assert lab.service.asked == 0, "a gradient is no state"
    lab.reader.fetch([lab.views[2]])
    assert lab.service.asked == 2
    lab.service.forget()
    assert lab.service.asked == 0


def test_more_ranges_than_a_question_has(lab: Lab) -> None:
    many = MOST_ITEMS + 3
    targets = [torch.zeros(1) for _ in range(many)]
    lab.reader.copy(targets, [lab.views[2].narrow(0, 3, 1)] * many)
    assert all(target == 1 for target in targets)


def test_questions_are_asked_while_others_are_answered(lab: Lab) -> None:
    """Each thread gets the answer to its own, in whatever order they come to ask."""
    view, source = lab.views[0], BOXES[0].state[0]

    def read(n: int) -> bool:
        part = view.narrow(0, n % 3, 1 + n % (3 - n % 3))
        (found,) = lab.reader.fetch([part])
        return torch.equal(found, source.narrow(0, n % 3, found.shape[0])) and lab.reader.counter() == 6

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(400)))


def test_what_fails_beside_the_line_leaves_it_as_it_was() -> None:
    # LS-32
    def fail() -> None:
        raise TransferError("nothing was read")

    lab = Lab(True, BOXES, turn=lambda: None)
    try:
        with pytest.raises(TransferError, match=r"^nothing was read$"):
            lab.line.turned(2, fail)
        assert lab.reader.counter() == 6
        assert lab.service.asked == 2
    finally:
        lab.close()


def test_words_are_said_and_their_end_hangs_up(lab: Lab) -> None:
    lab.words.set()
    assert lab.line.hear() == Header(Kind.CURRENT, 1, 2, 0)
    with pytest.raises(TransferError, match=r"^worker 0 went away while its state was read: "):
        lab.line.hear()
    assert lab.ended.wait(PATIENCE)
    assert lab.failure is None
    assert lab.heard == [Header(Kind.CURRENT, 1, 2, 0)]


@pytest.mark.parametrize(
    "item",
    [
        (FIRST_BOX, 0, 13), (FIRST_BOX, 12, 1), (FIRST_BOX, 1 << 63, 1), (FIRST_BOX, 1, (1 << 64) - 1),
        (FIRST_BOX + 1, 7, 6), (FIRST_BOX + 3, 0, 1), (1 << 63, 0, 1), (0, 0, 2), (1, 1, 1),
    ],
)  # fmt: skip
def test_who_asks_for_what_there_is_not_is_hung_up_on(lab: Lab, item: tuple[int, int, int]) -> None:
    # LS-32
    room = torch.zeros(100)
    with pytest.raises(TransferError, match=r"^worker 0 went away while its state was read: "):
        lab.line.read(np.array([item], dtype=np.uint64), ranges(view_of(room)))
    assert lab.ended.wait(PATIENCE)
    assert isinstance(lab.failure, TransferError)
    assert str(lab.failure).startswith("worker 1 asked for ")
    assert not room.any()


@pytest.mark.parametrize(
    "question", [(0, 1), (3, 1), (Question.READ, 0), (Question.READ, MOST_ITEMS + 1), (9, 1 << 63)]
)
def test_a_question_that_is_none_is_hung_up_on(lab: Lab, question: tuple[int, int]) -> None:
    # LS-32
    lab.receiver.outgoing(0).sendall(QUESTION.pack(*question))
    assert lab.ended.wait(PATIENCE)
    assert isinstance(lab.failure, TransferError)
    assert str(lab.failure).startswith("worker 1 asked question ")


@pytest.mark.parametrize("asked", [b"", b"\1", QUESTION.pack(Question.READ, 5), QUESTION.pack(Question.READ, 1) + b"7"])
def test_a_receiver_that_goes_in_the_middle_of_a_question(lab: Lab, asked: bytes) -> None:
    # LS-32
    lab.receiver.outgoing(0).sendall(asked)
    lab.receiver.give_up()
    assert lab.ended.wait(PATIENCE)
    assert isinstance(lab.failure, TransferError)


@pytest.mark.parametrize("end", ["owner", "receiver"])
def test_giving_up_throws_out_who_waits_for_a_word(lab: Lab, end: str) -> None:
    # LS-32
    heard: list[BaseException] = []

    def hear() -> None:
        try:
            lab.line.hear()
        except TransferError as error:
            heard.append(error)

    waiting = threading.Thread(target=hear)
    waiting.start()
    getattr(lab, end).give_up()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert len(heard) == 1


def test_memory_that_is_not_there_any_more_ends_the_line(lab: Lab) -> None:
    # LS-32
    gone = torch.ones(1 << 20)
    lab.boxes[1] = SharedBox((gone,))
    lab.views[2] = view_of(gone)
    gone.untyped_storage().resize_(0)
    with pytest.raises(TransferError):
        lab.line.read(np.array([(FIRST_BOX + 2, 0, 1 << 20)], dtype=np.uint64), ranges(view_of(torch.zeros(1 << 20))))
