"""What an owner says when, and how its counter moves: never between two states without being odd."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.api import Groups, Hyperparameters
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.transfer.frames import Header, Kind, decode
from liver_slurm.transfer.one_sided.owner import Owner
from liver_slurm.transfer.optimizer_replay import decode_groups
from liver_slurm.transfer.shared_box import SharedBox

PATIENCE = 60.0
VALUES = Hyperparameters(1e-3, 0.1, 0.9, 0.99, 1e-8)


class Sent:
    """A transport that keeps what was sent."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.headers: list[tuple[int, Header]] = []
        self.payloads: list[torch.Tensor] = []
        self.aborted = False

    def wait(self) -> None:
        """Each message has left at once."""

    def send(self, peer: int, *buffers: torch.Tensor) -> Sent:
        if self.aborted:
            raise TransferError("the transfer was given up")
        self.headers.append((peer, decode(buffers[0])))
        self.payloads += [buffer.clone() for buffer in buffers[1:]]
        return self

    def said(self, peer: int) -> list[tuple[Kind, int, int]]:
        return [(header.kind, header.number, header.version) for to, header in self.headers if to == peer]


class Training:
    """Updates that the test makes."""

    def __init__(self) -> None:
        self.watched, self.made = False, 10
        self.hooks: tuple[Callable[[], None], Callable[[], None]] = (lambda: None, lambda: None)

    def adam_step(self) -> int:
        return self.made

    def groups(self) -> Groups:
        return {GroupSpec(): VALUES, GroupSpec(0.0): VALUES._replace(weight_decay=0.0)}

    def watch(
        self, before: Callable[[], None], after: Callable[[], None], zeroing: Callable[[], None] | None
    ) -> Callable[[], None]:
        assert not self.watched
        self.watched, self.hooks = True, (before, after)

        def stop() -> None:
            self.watched, self.hooks = False, (lambda: None, lambda: None)

        return stop

    def update(self) -> None:
        self.hooks[0]()
        self.made += 1
        self.hooks[1]()


COUNTER = torch.zeros(1, dtype=torch.int64)


@pytest.fixture
def training() -> Training:
    return Training()


@pytest.fixture
def sent() -> Sent:
    COUNTER.zero_()
    return Sent()


@pytest.fixture
def owner(training: Training, sent: Sent) -> Iterator[Owner]:
    box = SharedBox((torch.arange(4.0),))
    made = Owner({1: [box], 4: [box, SharedBox((torch.ones(2),))]}, COUNTER, training, sent, None, sent.device)
    yield made
    made.cancel()


def test_the_counter_is_odd_while_an_update_is_made(owner: Owner, training: Training, sent: Sent) -> None:
    # LS-31
    owner.attach()
    seen = [int(COUNTER)]
    for _ in range(3):
        training.hooks[0]()
        seen.append(int(COUNTER))
        training.hooks[1]()
        seen.append(int(COUNTER))
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    owner.detach()
    training.update()
    assert int(COUNTER) == 6, "it is not watched any more"


def test_each_peer_hears_when_it_may_read_and_gets_its_digests(owner: Owner, training: Training, sent: Sent) -> None:
    owner.attach()
    training.update()
    for _ in range(2):  # either thread may say so, and both may
        owner.open()
    training.update()
    owner.finish(12)
    owner.run()
    for peer in (1, 4):
        assert sent.said(peer) == [
            (Kind.OPEN, 0, 1),
            (Kind.UPDATING, 11, 2),
            (Kind.CURRENT, 12, 2),
            (Kind.DIGESTS, 0, 2),
        ]
    assert decode_groups(sent.payloads[0].view(torch.float64)) == training.groups()
    digests = [payload.view(torch.int64).tolist() for payload in sent.payloads[2:]]
    assert [len(words) for words in digests] == [1, 2]
    assert digests[0][0] == digests[1][0], "one box that two peers read"
    assert not training.watched
    assert owner.bytes_sent == 16 + 24


def test_a_step_without_an_update_leaves_the_version(owner: Owner, sent: Sent) -> None:
    # LS-31
    owner.attach()
    owner.open()
    owner.finish(3)  # its gradient was not finite: no hook has run
    owner.run()
    assert sent.said(1) == [(Kind.OPEN, 0, 0), (Kind.CURRENT, 3, 0), (Kind.DIGESTS, 0, 0)]


def test_what_is_opened_while_an_update_is_made_is_at_the_version_before(
    owner: Owner, training: Training, sent: Sent
) -> None:
    # LS-31
    owner.attach()
    training.hooks[0]()
    owner.open()  # by the control thread
    assert int(COUNTER) == 1, "so nobody reads"
    training.hooks[1]()
    owner.finish(11)
    owner.run()
    assert [(kind, version) for kind, _, version in sent.said(1)] == [
        (Kind.OPEN, 0),
        (Kind.CURRENT, 1),
        (Kind.DIGESTS, 1),
    ]


def test_nothing_is_opened_before_updates_are_watched_or_after_training_stands(owner: Owner, sent: Sent) -> None:
    owner.open()
    owner.attach()
    owner.finish(1)
    owner.open()
    owner.run()
    assert [kind for kind, *_ in sent.said(1)] == [Kind.CURRENT, Kind.DIGESTS]


def test_a_transfer_that_is_given_up_is_nothing_to_training(owner: Owner, training: Training, sent: Sent) -> None:
    # LS-7
    owner.attach()
    owner.cancel()
    sent.aborted = True
    owner.open()
    training.update()
    owner.finish(1)
    owner.run()
    assert sent.headers == []


def test_who_waits_for_the_end_is_thrown_out(owner: Owner, sent: Sent) -> None:
    waiting = threading.Thread(target=owner.run)
    waiting.start()
    owner.cancel()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert sent.headers == []


def test_a_peer_that_is_gone_is_an_error_of_the_thread(owner: Owner, sent: Sent) -> None:
    owner.attach()
    sent.aborted = True
    owner.open()
    with pytest.raises(TransferError, match="the transfer was given up"):
        owner.run()


def test_what_is_only_read_while_training_stands_needs_no_updates(sent: Sent) -> None:
    owner = Owner({0: [SharedBox((torch.ones(2),))]}, COUNTER, None, sent, None, sent.device)
    owner.attach()
    owner.open()
    owner.finish(7)
    owner.run()
    assert sent.said(0) == [(Kind.CURRENT, 7, 0), (Kind.DIGESTS, 0, 0)]
