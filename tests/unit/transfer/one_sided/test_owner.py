"""What an owner says when, and how its counter moves: never between two states without being odd."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Groups, Hyperparameters
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.transfer import threads
from liver_slurm.transfer.one_sided.owner import Owner
from liver_slurm.transfer.one_sided.words import Kind
from liver_slurm.transfer.optimizer_replay import decode_groups
from liver_slurm.transfer.shared_box import SharedBox

PATIENCE = 60.0
VALUES = Hyperparameters(1e-3, 0.1, 0.9, 0.99, 1e-8)


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


BOX = SharedBox((torch.arange(4.0),), torch.full((4,), 0.5))
OTHER = SharedBox((torch.ones(2),), torch.full((2,), 0.25))


@pytest.fixture
def owner(training: Training) -> Iterator[Owner]:
    COUNTER.zero_()
    made = Owner([{1: [BOX], 4: [BOX, OTHER]}], COUNTER, training, None)
    yield made
    made.close()


def said(owner: Owner, peer: int) -> list[tuple[Kind, int, int]]:
    """All words for a peer so far, but for the digests behind them."""
    words = [word.header for word in owner._words[peer]]
    assert all(header.kind is not Kind.DIGESTS for header in words[:-1])
    return [(header.kind, header.number, header.version) for header in words if header.kind is not Kind.DIGESTS]


def digests(owner: Owner, peer: int) -> list[int]:
    """What is said last."""
    header, data = owner._word(peer, len(owner._words[peer]) - 1) or (None, None)
    assert header is not None
    assert data is not None
    assert (header.kind, header.nbytes) == (Kind.DIGESTS, data.numel())
    owner._told(peer, header)
    return list(data.view(torch.int64).tolist())


def test_the_counter_is_odd_while_an_update_is_made(owner: Owner, training: Training) -> None:
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


def test_each_peer_hears_when_it_may_read_and_gets_its_digests(owner: Owner, training: Training) -> None:
    owner.attach()
    training.update()
    owner.open(last=False)  # which concerns those only that read over a connection
    training.update()
    for _ in range(2):  # either thread may say so, and both may
        owner.open(last=True)
    training.update()
    owner.finish(13)
    for peer, boxes in ((1, 1), (4, 2)):
        assert said(owner, peer) == [(Kind.OPEN, boxes, 2), (Kind.UPDATING, 12, 3), (Kind.CURRENT, 13, 3)]
    table = owner._words[4][1].content
    assert table is not None
    assert decode_groups(table.view(torch.float64)) == training.groups()
    found = [digests(owner, peer) for peer in (1, 4)]
    assert [len(words) for words in found] == [1, 2]
    assert found[0][0] == found[1][0], "one box that two peers read"
    assert not training.watched
    assert owner.bytes_sent == [16 + 24]
    owner.run()


def test_who_reads_over_a_connection_may_do_so_many_steps_ahead(owner: Owner, training: Training) -> None:
    owner.follow([4], None)
    owner.attach()
    owner.open(last=False)
    training.update()
    training.update()
    owner.open(last=True)
    training.update()
    owner.finish(13)
    assert said(owner, 4) == [
        (Kind.OPEN, 2, 0),
        (Kind.UPDATING, 10, 1),
        (Kind.OPEN, 2, 1),
        (Kind.UPDATING, 11, 2),
        (Kind.OPEN, 2, 2),
        (Kind.UPDATING, 12, 3),
        (Kind.CURRENT, 13, 3),
    ]
    assert said(owner, 1) == [(Kind.OPEN, 1, 2), (Kind.UPDATING, 12, 3), (Kind.CURRENT, 13, 3)]


def test_boxes_without_room_for_their_gradients_wait_for_the_last_step(owner: Owner, training: Training) -> None:
    # LS-24
    owner.follow([4], 16)
    assert owner.gradient_bytes == 16
    owner.attach()
    owner.open(last=False)
    training.update()
    owner.open(last=True)
    assert said(owner, 4) == [
        (Kind.OPEN, 1, 0),
        (Kind.UPDATING, 10, 1),
        (Kind.OPEN, 1, 1),
        (Kind.OPEN, 2, 1),
    ]


def test_without_any_room_nothing_is_read_ahead_of_the_last_step(owner: Owner, training: Training) -> None:
    owner.follow([4], 0)
    owner.attach()
    owner.open(last=False)
    training.update()
    owner.open(last=True)
    assert said(owner, 4) == [(Kind.OPEN, 2, 1)]


def test_a_step_without_an_update_leaves_the_version(owner: Owner) -> None:
    # LS-31
    owner.attach()
    owner.open(last=True)
    owner.finish(3)  # its gradient was not finite: no hook has run
    assert said(owner, 1) == [(Kind.OPEN, 1, 0), (Kind.CURRENT, 3, 0)]


@pytest.mark.parametrize("far", [[], [1]])
def test_what_is_opened_while_the_last_update_is_made_is_read_behind_it(
    owner: Owner, training: Training, far: list[int]
) -> None:
    # LS-31
    owner.follow(far, None)
    owner.attach()
    training.hooks[0]()
    owner.open(last=True)  # by the control thread
    assert int(COUNTER) == 1
    training.hooks[1]()
    owner.finish(11)
    assert said(owner, 1) == [(Kind.CURRENT, 11, 1)]


def test_nothing_is_opened_before_updates_are_watched_or_after_training_stands(owner: Owner) -> None:
    owner.open(last=True)
    owner.attach()
    owner.finish(1)
    owner.open(last=True)
    assert said(owner, 4) == [(Kind.CURRENT, 1, 0)]


@pytest.mark.parametrize("far", [[], [1, 4]])
@pytest.mark.parametrize("opened", [True, False])
def test_a_transfer_that_is_given_up_is_nothing_to_training(training: Training, far: list[int], opened: bool) -> None:
    # LS-7
    pool = threads.pool(1)
    owner = Owner([{1: [BOX], 4: [BOX, OTHER]}], COUNTER.zero_(), training, pool)
    owner.follow(far, None)
    owner.attach()
    if opened:
        owner.open(last=False)
        training.update()
    owner.close()
    pool.shutdown()
    owner.open(last=True)
    training.update()
    training.update()
    owner.finish(1)
    owner.run()
    assert owner._word(1, 0) is None


@pytest.mark.parametrize("call", [lambda owner: owner.run(), lambda owner: owner._word(1, 0)], ids=["run", "word"])
def test_who_waits_is_thrown_out(owner: Owner, call: Callable[[Owner], object]) -> None:
    waiting = threading.Thread(target=lambda: call(owner))
    waiting.start()
    owner.cancel()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_a_peer_that_is_gone_before_it_was_told_everything_is_an_error(owner: Owner) -> None:
    # LS-32
    owner.finish(1)
    digests(owner, 4)
    owner._line_ended(4)(TransferError("worker 4 went away"))
    owner._line_ended(1)(TransferError("worker 1 went away"))
    with pytest.raises(TransferError, match="worker 1 went away"):
        owner.run()


def test_a_peer_that_asks_for_a_word_out_of_turn_is_told_nothing(owner: Owner) -> None:
    # LS-32
    with pytest.raises(TransferError, match="worker 1 asked for word 3 before word 0"):
        owner._word(1, 3)


def test_late_layers_follow_one_by_one(training: Training) -> None:
    COUNTER.zero_()
    owner = Owner([{1: [BOX]}, {1: []}, {1: [OTHER, BOX]}], COUNTER, training, None)
    found = []
    for group in range(3):
        owner.finish(5, group)
        found.append(digests(owner, 1))
        owner.run(group)
    assert [len(words) for words in found] == [1, 0, 2]
    assert found[2][1] == found[0][0]
    assert [word.header.kind for word in owner._words[1]] == [Kind.CURRENT, Kind.DIGESTS] * 3
    assert owner.bytes_sent == [16, 0, 24]
    owner.close()


def test_what_is_only_read_while_training_stands_needs_no_updates() -> None:
    owner = Owner([{0: [SharedBox((torch.ones(2),))]}], COUNTER, None, None)
    owner.attach()
    owner.open(last=True)
    owner.finish(7)
    assert said(owner, 0) == [(Kind.CURRENT, 7, 0)]
    assert len(digests(owner, 0)) == 1
