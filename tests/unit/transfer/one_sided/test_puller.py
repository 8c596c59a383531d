"""What a receiver does with its owner's words, due or not, over real connections between two ends of one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.distributed as dist
from memory_owner import same_bytes

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Hyperparameters
from liver_slurm.engine.update_rules import update
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.transfer import threads
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.one_sided import puller
from liver_slurm.transfer.one_sided import puller as module
from liver_slurm.transfer.one_sided.description import BoxDescription, Description, view_of
from liver_slurm.transfer.one_sided.handshake import describe
from liver_slurm.transfer.one_sided.line import Line
from liver_slurm.transfer.one_sided.network import NetworkReader
from liver_slurm.transfer.one_sided.process_memory import ProcessReader
from liver_slurm.transfer.one_sided.puller import Puller
from liver_slurm.transfer.one_sided.service import Answers, Service, Word
from liver_slurm.transfer.one_sided.staging import Staging
from liver_slurm.transfer.one_sided.words import Header, Kind
from liver_slurm.transfer.optimizer_replay import encode_groups
from liver_slurm.transfer.proof import BoxDigests
from liver_slurm.transfer.shared_box import SharedBox

PATIENCE = 60.0
CPU = torch.device("cpu")
PLAIN, HALF = GroupSpec(), GroupSpec(lr_mult=0.5)
NAMES = ("w@master", "w@momentum_buffer", "w@ema")
"""Two moments as Adam has, but others."""
VALUES = {
    PLAIN: Hyperparameters(1e-2, 0.1, momentum=0.9, ema_decay=0.99),
    HALF: Hyperparameters(5e-3, 0.0, momentum=0.8, ema_decay=0.95),
}
STEP = 6
"""Updates that the owner has made before."""
Words = tuple[Kind, int, int, torch.Tensor | None]


class Lab:
    """An owner whose words the test says, and the puller that hears them."""

    def __init__(
        self,
        opened: ExitStack,
        shapes: list[tuple[int, ...]],
        staging: int = 1 << 16,
        pool: int = 2,
        way: str = "memory",
    ) -> None:
        store = dist.HashStore()
        self.ends = [Connections(store, me, 2, True, "lo") for me in (0, 1)]
        for end in self.ends:
            opened.callback(end.close)
        values = torch.Generator().manual_seed(5)
        self.counter = torch.zeros(1, dtype=torch.int64)
        self.boxes = [
            SharedBox(
                tuple(torch.rand(shape, generator=values) for _ in range(3)),
                torch.randn(shape, generator=values),
                HALF if number % 2 else PLAIN,
                NAMES,
            )
            for number, shape in enumerate(shapes)
        ]
        self.arrived = [
            SharedBox(tuple(torch.full(shape, 7.0) for _ in range(3)), None, box.group, NAMES)
            for shape, box in zip(shapes, self.boxes, strict=True)
        ]
        owner = self.description()
        self.log, self.staging = torch.zeros(1, dtype=torch.int64), Staging(staging, pool)
        self._words: list[Word] = []
        self._said, self._over = threading.Condition(), False
        answers = Answers((self.counter, self.log), self.gradient, self.word, lambda *_: None)
        service = Service(self.ends[0], 1, self.boxes, answers, lambda _: None, self.staging)
        opened.callback(service.join)
        opened.callback(self.give_up)
        self.line, device = Line(self.ends[1], 0), torch.device("cpu")
        self.reader: Any = ProcessReader(owner)
        if way == "network":
            self.reader = NetworkReader(self.line, device, self.staging)
        self.received: list[SharedBox] = []
        workers = threads.pool(pool)
        opened.callback(workers.shutdown)
        self.puller = Puller(
            self.line, self.reader, self.arrived, owner.boxes, workers, self.staging, device, self.received.extend
        )
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        opened.callback(self.end)

    def description(self) -> Description:
        return describe(self.boxes, self.counter)

    def gradient(self, box: SharedBox) -> torch.Tensor:
        assert box.gradient is not None
        return box.gradient

    def word(self, _peer: int, number: int) -> Word | None:
        with self._said:
            assert self._said.wait_for(lambda: self._over or number < len(self._words), PATIENCE)
            return None if self._over else self._words[number]

    def give_up(self) -> None:
        with self._said:
            self._over = True
            self._said.notify_all()
        for end in self.ends:
            end.give_up()

    def _run(self) -> None:
        try:
            self.puller.run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def start(self) -> None:
        self._thread.start()

    def say(self, kind: Kind, number: int, version: int, content: torch.Tensor | None = None) -> None:
        nbytes = content.numel() if content is not None else 0
        self.say_as(Header(kind, number, version, nbytes), content)

    def say_as(self, header: Header, content: torch.Tensor | None = None) -> None:
        with self._said:
            self._words.append((header, content))
            self._said.notify_all()

    def table(self) -> torch.Tensor:
        return encode_groups(VALUES).view(torch.uint8).view(-1)

    def digests(self) -> torch.Tensor:
        (words,) = BoxDigests([self.boxes]).take()
        return torch.tensor(words, dtype=torch.int64).view(torch.uint8)

    def update(self) -> None:
        """The owner's next update, in which it reads the gradients."""
        self.counter += 1
        for box in self.boxes:
            assert box.group is not None
            assert box.gradient is not None
            update([(*box.state, box.gradient)], STEP, VALUES[box.group], box.moments)  # type: ignore[list-item]
        self.counter += 1

    def end(self) -> BaseException | None:
        """Wait for the puller, which comes to an end by itself, or is thrown out."""
        if self._thread.ident is not None:
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                self.give_up()
                self._thread.join(PATIENCE)
            assert not self._thread.is_alive()
        return self.error

    def read(self, boxes: int) -> None:
        """Wait until so many boxes were read."""
        self._until(lambda: len(self.puller._known) == boxes)

    def replayed(self, version: int) -> None:
        """Wait until an update was made on what was read."""
        each = sum(box.nbytes for box in self.boxes[:2]) // 3
        self._until(lambda: self.puller.bytes_gradients == version * each)

    def _until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def arrived_alike(self) -> bool:
        return all(
            same_bytes(*pair)
            for box, kept in zip(self.arrived, self.boxes, strict=True)
            for pair in zip(box.state, kept.state, strict=True)
        )


@pytest.fixture
def lab() -> Iterator[Callable[..., Lab]]:
    with ExitStack() as opened:
        yield lambda *shapes, **options: Lab(opened, list(shapes), **options)


class Pausing:
    """Stops a puller after so many batches, until the test lets it go on."""

    def __init__(self, lab: Lab, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        copy, left = lab.puller._copy, [after]

        def pausing(batch: Any) -> None:
            copy(batch)
            left[0] -= 1
            if left[0] == 0:
                self.reached.set()
                assert self.go.wait(PATIENCE)

        monkeypatch.setattr(lab.puller, "_copy", pausing)


ways = pytest.mark.parametrize("way", ["memory", "network"])
SHAPES = ((40, 6), (3, 2, 5), (1, 7), (64,), (2, 300))


def all_read(lab: Lab) -> None:
    """Wait until the puller has read all, and listens again."""
    reached = threading.Event()
    hear, left = lab.line.hear, [2]

    def hearing() -> Header:
        left[0] -= 1
        if left[0] == 0:
            reached.set()
        return hear()

    lab.line.hear = hearing  # type: ignore[method-assign]
    lab.start()
    lab.say(Kind.OPEN, 100, 0)
    assert reached.wait(PATIENCE)


@pytest.mark.parametrize("staging", [64, 1 << 10, 1 << 16])
@pytest.mark.parametrize("pool", [1, 4])
@ways
def test_read_ahead_and_one_update_replayed_is_a_full_copy(
    lab: Callable[..., Lab], way: str, staging: int, pool: int
) -> None:
    # LS-3, LS-23
    made = lab(*SHAPES, staging=staging, pool=pool, way=way)
    all_read(made)
    made.log.fill_(2)
    made.say(Kind.UPDATING, STEP, 1, made.table())
    made.update()
    made.say(Kind.CURRENT, STEP + 1, 1)
    made.say(Kind.DIGESTS, 0, 1, made.digests())
    assert made.end() is None
    assert made.arrived_alike()
    state, puller = sum(box.nbytes for box in made.boxes), made.puller
    assert (puller.bytes_received, puller.bytes_early, puller.bytes_gradients) == (state, state, state // 3)
    assert (puller.adam_step, puller.digests_checked) == (STEP + 1, 3 * len(SHAPES))
    assert 0 < made.staging.peak_bytes <= staging
    assert sum(box.nbytes for box in made.received) == state


@ways
def test_what_is_not_read_in_time_is_read_at_the_cutover(
    lab: Callable[..., Lab], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # LS-31
    monkeypatch.setitem(module._BATCH, "cpu", 1)
    made = lab(*SHAPES, way=way)
    made.log.fill_(2)
    pausing = Pausing(made, 2, monkeypatch)
    made.start()
    made.say(Kind.OPEN, 100, 0)
    assert pausing.reached.wait(PATIENCE)
    made.say(Kind.UPDATING, STEP, 1, made.table())
    made.update()  # the second batch does not count: it may have been read in the middle of it
    pausing.go.set()
    made.say(Kind.CURRENT, STEP + 1, 1)
    made.say(Kind.DIGESTS, 0, 1, made.digests())
    assert made.end() is None
    assert made.arrived_alike()
    assert made.puller.bytes_early == made.boxes[0].nbytes
    assert made.puller.bytes_gradients == made.boxes[0].nbytes // 3


def test_what_is_read_while_an_update_is_made_never_counts(
    lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    # LS-31
    made = lab(*SHAPES)
    made.counter.fill_(1)
    made.start()
    made.say(Kind.OPEN, 100, 0)
    made.say(Kind.CURRENT, STEP, 0)
    error = made.end()
    assert isinstance(error, TransferError)
    assert str(error) == "worker 0 went on training while its state was read"
    assert not made.puller.ended
    assert made.puller.bytes_early == 0


def test_over_a_connection_it_goes_on_for_some_steps(lab: Callable[..., Lab]) -> None:
    # LS-3, LS-31
    made = lab(*SHAPES, way="network")
    made.start()
    made.say(Kind.OPEN, 2, 0)
    for version in (1, 2, 3):
        made.read(2)
        made.log.fill_(2 * version)
        made.say(Kind.UPDATING, STEP, version, made.table())
        made.replayed(version)
        made.update()
        made.say(Kind.OPEN, 2, version)
    made.say(Kind.OPEN, 5, 3)
    made.say(Kind.CURRENT, STEP + 3, 3)
    made.say(Kind.DIGESTS, 0, 3, made.digests())
    assert made.end() is None
    assert made.arrived_alike()
    assert made.puller.bytes_gradients == 3 * sum(box.nbytes for box in made.boxes[:2]) // 3


def test_what_has_no_gradient_any_more_is_read_again(lab: Callable[..., Lab]) -> None:
    # LS-31
    made = lab(*SHAPES, way="network")
    all_read(made)
    made.log.fill_(4)  # the owner is one update further already
    made.say(Kind.UPDATING, STEP, 1, made.table())
    made.update()
    made.say(Kind.OPEN, 5, 1)
    made.say(Kind.CURRENT, STEP + 1, 1)
    made.say(Kind.DIGESTS, 0, 1, made.digests())
    assert made.end() is None
    assert made.arrived_alike()
    assert made.puller.bytes_gradients == 0


def test_a_step_without_an_update_needs_nothing_more(lab: Callable[..., Lab]) -> None:
    made = lab(*SHAPES)
    all_read(made)
    for box in made.boxes:
        assert box.gradient is not None
        box.gradient.fill_(torch.nan)
    made.say(Kind.CURRENT, STEP, 0)
    made.say(Kind.DIGESTS, 0, 0, made.digests())
    assert made.end() is None
    assert made.arrived_alike()
    assert (made.puller.bytes_gradients, made.puller.adam_step) == (0, STEP)


def test_an_owner_that_is_further_than_it_said_is_read_again(lab: Callable[..., Lab]) -> None:
    # LS-31
    made = lab(*SHAPES)
    all_read(made)
    for _ in range(2):
        made.update()
    made.say(Kind.CURRENT, STEP + 2, 2)
    made.say(Kind.DIGESTS, 0, 2, made.digests())
    assert made.end() is None
    assert made.arrived_alike()
    assert made.puller.bytes_early == 0


OPEN: Words = (Kind.OPEN, 100, 0, None)
CURRENT: Words = (Kind.CURRENT, STEP, 0, None)
SOME = torch.zeros(8, dtype=torch.uint8)
TABLE = encode_groups(VALUES).view(torch.uint8).view(-1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([OPEN, OPEN], "worker 0: OPEN is not due"),
        ([OPEN, (Kind.OPEN, 101, 1, None)], "worker 0: OPEN is not due"),
        ([(Kind.OPEN, 100, -1, None)], "worker 0: OPEN is not due"),
        ([OPEN, (Kind.UPDATING, STEP, 1, TABLE), OPEN], "worker 0: OPEN is not due"),
        ([(Kind.OPEN, 100, 0, SOME)], "worker 0: nothing is due behind OPEN"),
        ([CURRENT, CURRENT], "worker 0: 0 bytes of digests are not due"),
        ([(Kind.CURRENT, STEP, 0, SOME)], "worker 0: CURRENT is not due"),
        ([(Kind.CURRENT, STEP, 1, None)], "worker 0 went on training while its state was read"),
        ([(Kind.CURRENT, STEP, -1, None)], "worker 0 went on training while its state was read"),
        ([(Kind.DIGESTS, 0, 0, SOME)], "worker 0: DIGESTS is not due"),
        ([CURRENT, (Kind.DIGESTS, 0, 0, SOME)], "worker 0: 8 bytes of digests are not due"),
        ([(Kind.UPDATING, STEP, 1, TABLE)], "worker 0: UPDATING is not due"),
        ([OPEN, (Kind.UPDATING, STEP, 2, TABLE)], "worker 0: an update to version 2 is not due"),
        ([OPEN, (Kind.UPDATING, -1, 1, TABLE)], "worker 0: an update to version 1 is not due"),
        ([OPEN, (Kind.UPDATING, STEP, 1, SOME[:7])], "worker 0: a table of 7 bytes is not due"),
        ([OPEN, (Kind.UPDATING, STEP, 1, SOME)], "a table of parameter groups has 1 numbers"),
        ([OPEN, (Kind.UPDATING, STEP, 1, None)], "the source world has no parameter group"),
        ([OPEN, *[(Kind.UPDATING, STEP, 1, TABLE)] * 2], "worker 0: UPDATING is not due"),
    ],
)
def test_a_word_that_is_not_due_ends_it(lab: Callable[..., Lab], words: list[Words], said: str) -> None:
    # LS-32
    made = lab(*SHAPES)
    made.start()
    for word in words:
        made.say(*word)
    error = made.end()
    assert isinstance(error, TransferError)
    assert str(error).startswith(said)


@pytest.mark.parametrize("nbytes", [-1, 1 << 40, (1 << 63) - 1])
@pytest.mark.parametrize("kind", list(Kind))
def test_no_memory_is_taken_for_what_a_header_says(lab: Callable[..., Lab], kind: Kind, nbytes: int) -> None:
    # LS-32
    made = lab((4,))
    made.start()
    if kind is Kind.UPDATING:
        made.say(*OPEN)
    elif kind is Kind.DIGESTS:
        made.say(*CURRENT)
    made.say_as(Header(kind, STEP, 1, nbytes))
    assert isinstance(made.end(), TransferError)


def test_what_is_no_header_ends_it(lab: Callable[..., Lab]) -> None:
    # LS-32
    made = lab((4,))
    made.start()
    made.say_as(Header(99, 0, 0, 0))  # type: ignore[arg-type]
    assert isinstance(made.end(), TransferError)


def test_a_box_that_is_another_than_its_owner_has_is_found(lab: Callable[..., Lab]) -> None:
    # LS-12
    made = lab(*SHAPES)

    def spoil(boxes: Sequence[SharedBox]) -> None:
        for view in (view for box in boxes for view in box.state if view.shape == (64,)):
            view[:1].add_(1.0)

    made.puller._on_received = spoil
    made.start()
    made.say(*CURRENT)
    made.say(Kind.DIGESTS, 0, 0, made.digests())
    assert str(made.end()) == (
        "worker 0: the digest of what arrived differs from the digest of what was sent, in 3 of 15 boxes: "
        "w@master at (), …"
    )


def test_reading_stops_when_it_is_given_up(lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    # LS-7
    monkeypatch.setitem(module._BATCH, "cpu", 1)
    made = lab(*SHAPES)
    pausing = Pausing(made, 1, monkeypatch)
    made.start()
    made.say(*OPEN)
    assert pausing.reached.wait(PATIENCE)
    made.puller.cancel()
    pausing.go.set()
    assert str(made.end()) == "the transfer was given up"


@pytest.mark.parametrize("wrong", ["fewer", "shape", "type", "another"])
def test_boxes_that_are_not_those_of_the_plan_are_refused(lab: Callable[..., Lab], wrong: str) -> None:
    # LS-32
    made = lab((4, 2), (3,))
    owner = made.description()
    if wrong == "fewer":
        owner.boxes.pop()
    else:
        box = owner.boxes[0]
        views = {"shape": torch.zeros(2, 4), "type": torch.zeros(4, 2, dtype=torch.float64)}
        view = view_of(views[wrong]) if wrong in views else box.state[0]
        identity = box.identity + (wrong == "another")
        owner.boxes[0] = BoxDescription((view, *box.state[1:]), box.gradient, identity)
    with pytest.raises(TransferError, match=r"^a peer has"):
        Puller(made.line, made.reader, made.arrived, owner.boxes, None, made.staging, CPU, print)


def test_a_probe_reads_the_largest_box(lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one in front says how long a call takes; for a wire of such a rate all state would wait for the pause."""
    made = lab((2, 3), (30, 10), (5,), staging=1 << 20)
    monkeypatch.setitem(puller._BATCH, "cpu", 100)  # a batch is one box, and larger than that where one is
    assert made.puller.read_some() == 12 * 300
