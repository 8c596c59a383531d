"""When boxes leave: from the moment they may, also in the middle of a step, but never while an update is made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from liver_slurm.engine.api import Groups, Hyperparameters, TrainedBox
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import Piece
from liver_slurm.transfer import threads
from liver_slurm.transfer.frames import HEADER_BYTES, Header, Kind, Slots, decode
from liver_slurm.transfer.optimizer_replay import GRADIENT_BYTES, Trained
from liver_slurm.transfer.sender import Outgoing, Sender

PATIENCE = 10.0


class Sent:
    """A transport that keeps what was sent."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self._changed = threading.Condition()
        self._headers: list[Header] = []

    def wait(self) -> None:
        """Each message has left at once."""

    def send(self, peer: int, *buffers: torch.Tensor) -> Sent:
        with self._changed:
            header = decode(buffers[0])
            assert [buffer.numel() for buffer in buffers] == [HEADER_BYTES, header.nbytes][: len(buffers)]
            assert len(buffers) == 1 + (header.nbytes > 0)
            self._headers.append(header)
            self._changed.notify_all()
        return self

    def until(self, *expected: tuple[Kind, int]) -> None:
        """Wait until exactly these kinds and versions have been sent, and see that they have."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._headers) >= len(expected), PATIENCE)
            assert [(header.kind, header.version) for header in self._headers] == list(expected)


class Training:
    """Updates that the test makes."""

    def __init__(self) -> None:
        self.made = 0
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None
        self.zeroing: Callable[[], None] = lambda: None

    def adam_step(self) -> int:
        return self.made

    def groups(self) -> Groups:
        return {GroupSpec(): Hyperparameters(1e-3, 0.0, 0.9, 0.99, 1e-8)}

    def watch(
        self, before: Callable[[], None], after: Callable[[], None], zeroing: Callable[[], None]
    ) -> Callable[[], None]:
        self.before, self.after, self.zeroing = before, after, zeroing

        def stop() -> None:
            self.before = self.after = self.zeroing = lambda: None

        return stop

    def update(self) -> None:
        self.zeroing()
        self.before()
        self.made += 1
        self.after()


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def training() -> Training:
    return Training()


@pytest.fixture(params=[False, True], ids=["in the hook", "beside"])
def pool(request: pytest.FixtureRequest) -> Iterator[ThreadPoolExecutor | None]:
    """What gradients are staged in."""
    if not request.param:
        yield None
        return
    with threads.pool(2) as pool:
        yield pool


@contextmanager
def sending(
    peers: Sequence[int],
    gradient: Callable[[], torch.Tensor],
    training: Training,
    sent: Sent,
    pool: ThreadPoolExecutor | None,
    room: int | None = None,
) -> Iterator[Sender]:
    """A source that sends one box of four elements to some peers."""
    piece = Piece("w", (0,), (4,))
    content = Trained([TrainedBox(piece, torch.zeros(4), torch.zeros(4), torch.zeros(4), gradient, GroupSpec())])
    outgoing, boxes = [Outgoing(peer, 0, content) for peer in peers], {peer: {piece: content} for peer in peers}
    source = Sender(outgoing, boxes, training, sent, Slots(2, 64, pinned=False), pool, sent.device, room)
    thread = threading.Thread(target=source.run)
    thread.start()
    try:
        yield source
    finally:
        source.cancel()
        thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture
def source(sent: Sent, training: Training, pool: ThreadPoolExecutor | None) -> Iterator[Sender]:
    with sending([1], lambda: torch.zeros(4), training, sent, pool) as source:
        yield source


STATE = (Kind.STATE, 1)
FOLLOWING = ((Kind.GROUPS, 2), (Kind.GRADIENT, 2))
AT_THE_END = ((Kind.END, 2), (Kind.DIGESTS, 2))


def test_state_leaves_in_the_step_in_which_it_is_let_go(source: Sender, sent: Sent, training: Training) -> None:
    source.attach()
    training.update()
    source.open()  # by another thread, with training in its second step
    sent.until(STATE)
    training.update()
    sent.until(STATE, *FOLLOWING)
    source.finish()
    sent.until(STATE, *FOLLOWING, *AT_THE_END)
    assert source.stats.bytes_early == 48


def test_what_is_let_go_before_updates_are_watched_leaves_from_then_on(source: Sender, sent: Sent) -> None:
    source.open()
    source.attach()
    sent.until((Kind.STATE, 0))


def test_nothing_leaves_while_an_update_is_made(source: Sender, sent: Sent, training: Training) -> None:
    source.attach()
    training.before()
    source.open()
    training.after()
    sent.until(STATE)  # the version says that it was read after the update


def test_what_was_not_let_go_leaves_in_the_pause(source: Sender, sent: Sent, training: Training) -> None:
    source.attach()
    training.update()
    source.finish()
    sent.until(STATE, (Kind.END, 1), (Kind.DIGESTS, 1))
    assert (source.stats.bytes_early, source.stats.bytes_gradients) == (0, 0)


def test_what_several_peers_get_is_staged_once(sent: Sent, training: Training, pool: ThreadPoolExecutor | None) -> None:
    staged = []

    def gradient() -> torch.Tensor:
        staged.append(torch.zeros(4))
        return staged[-1]

    nbytes = 4 * GRADIENT_BYTES
    with sending((1, 2, 3), gradient, training, sent, pool, room=nbytes) as source:
        source.attach()
        source.open()
        sent.until(*[(Kind.STATE, 0)] * 3)
        training.update()
        training.update()
        updates = [((Kind.GROUPS, version), (Kind.GRADIENT, version)) for version in (1, 2)]
        forwarded = [message for kinds in updates for kind in kinds for message in [kind] * 3]
        sent.until(*[(Kind.STATE, 0)] * 3, *forwarded)
        source.finish()
        sent.until(*[(Kind.STATE, 0)] * 3, *forwarded, *[(Kind.END, 2)] * 3, *[(Kind.DIGESTS, 2)] * 3)
    assert len(staged) == 2, "once for each update"
    assert source.staging_bytes == nbytes
    assert source.stats.exposed_seconds > 0


@pytest.fixture
def may_read() -> threading.Event:
    """Gradients can be read."""
    return threading.Event()


@pytest.fixture
def updated(sent: Sent, training: Training, may_read: threading.Event) -> Iterator[Sender]:
    """One that has sent state, and whose training has made an update since; its gradients take their time."""

    def gradient() -> torch.Tensor:
        assert may_read.wait(PATIENCE)
        return torch.zeros(4)

    with threads.pool(1) as pool, sending([1], gradient, training, sent, pool) as source:
        source.attach()
        source.open()
        sent.until((Kind.STATE, 0))
        training.update()
        yield source
        may_read.set()


@pytest.fixture
def next_step(updated: Sender, training: Training) -> Iterator[threading.Thread]:
    """It has begun, and zeroes gradients first."""
    step = threading.Thread(target=training.zeroing)
    step.start()
    yield step
    step.join(PATIENCE)
    assert not step.is_alive()


def test_gradients_stay_until_they_are_staged(
    updated: Sender, next_step: threading.Thread, may_read: threading.Event, sent: Sent
) -> None:
    exposed = updated.stats.exposed_seconds
    next_step.join(0.1)
    assert next_step.is_alive()
    may_read.set()
    next_step.join(PATIENCE)
    assert updated.stats.exposed_seconds > exposed
    sent.until((Kind.STATE, 0), (Kind.GROUPS, 1), (Kind.GRADIENT, 1))


def test_a_step_does_not_wait_for_gradients_of_what_is_given_up(updated: Sender, next_step: threading.Thread) -> None:
    updated.cancel()
    next_step.join(PATIENCE)
    assert not next_step.is_alive()
