"""A mirror over a real connection: it has the owner's state bit for bit, whenever the owner dies."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Groups, Hyperparameters, Replica, TrainedBox
from liver_slurm.engine.update_rules import update
from liver_slurm.reshard.mirrors import Difference, Extent
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import ADAM, AVERAGE, Piece
from liver_slurm.transfer.mirror import keeper as keeping
from liver_slurm.transfer.mirror import owner as owning
from liver_slurm.transfer.mirror.frames import (
    ACKNOWLEDGEMENT,
    HEADER_BYTES,
    Header,
    Kind,
    Room,
    decode_description,
    describe,
)
from liver_slurm.transfer.mirror.keeper import MirrorKeeper, Replay, replay
from liver_slurm.transfer.mirror.owner import MOST_DIFFERENT, MirrorOwner
from liver_slurm.transfer.mirror.proof import Proofs

PLAIN, NORMS = GroupSpec(), GroupSpec(wd_mult=0.0)
MOMENTS, DTYPES = (*ADAM, AVERAGE), (torch.bfloat16, torch.bfloat16, torch.float32)


class Shard:
    """Some boxes of Adam's in bf16, with averages, two groups, and a weight that is not trained."""

    def __init__(self, shapes: tuple[tuple[int, ...], ...] = ((3, 4), (5,), (2, 2, 2)), fixed: bool = True) -> None:
        values = torch.Generator().manual_seed(7)
        self.made, self.lr, self.hooks = 0, 1e-2, []
        self.counted: int | None = None
        """Updates made, counted while they are watched."""
        self.gradients = [torch.randn(shape, generator=values) for shape in shapes]
        self.trained = [
            TrainedBox(
                Piece(f"w{number}", (0,) * len(shape), shape),
                (torch.randn(shape, generator=values), *(torch.zeros(shape, dtype=dtype) for dtype in DTYPES)),
                (lambda number=number: self.gradients[number]),  # type: ignore[misc]
                NORMS if number % 2 else PLAIN,
                MOMENTS,
            )
            for number, shape in enumerate(shapes)
        ]
        self.fixed = [(Piece("frozen", (0,), (3,)), torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16))] * fixed

    def replica(self) -> Replica:
        return Replica(self.trained, self.fixed)

    def updates(self) -> Shard:
        return self

    def adam_step(self) -> int:
        return self.counted if self.counted is not None else self.made

    def groups(self) -> Groups:
        values = Hyperparameters(self.lr, 0.1, 0.9, 0.95, 1e-8, ema_decay=0.9)
        return {group: values._replace(weight_decay=0.1 * group.wd_mult) for group in (PLAIN, NORMS)}

    def watch(self, _before: Callable[[], None], after: Callable[[], None], _zeroing: Any) -> Callable[[], None]:
        self.counted = self.made
        self.hooks.append(after)
        return self.hooks.clear

    def step(self, number: int, finite: bool = True) -> None:
        """Gradients of a step, before its update."""
        values = torch.Generator().manual_seed(number)
        self.gradients = [torch.randn(one.shape, generator=values) for one in self.gradients]
        self.lr *= 0.9
        if not finite:
            self.gradients[0].fill_(torch.nan)

    def update(self) -> None:
        groups = self.groups()
        with torch.no_grad():
            for box in self.trained:
                update([(*box.state, box.gradient())], self.made, groups[box.group], MOMENTS)
        self.made += 1
        self.counted = self.counted + 1 if self.counted is not None else None
        for hook in self.hooks:
            hook()

    def snapshot(self) -> list[torch.Tensor]:
        return [view.clone() for box in self.trained for view in box.state] + [view for _, view in self.fixed]


def state_of(replica: Replica) -> list[torch.Tensor]:
    return [view for box in replica.trained for view in box.state] + [view for _, view in replica.fixed]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


class Lab:
    def __init__(self, at_once: int = 1 << 20, every: int = 1, make: Replay = replay) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.proofs = Proofs()
        self.owner = MirrorOwner(self.ours, at_once, every)
        self.keeper = MirrorKeeper(self.theirs, "owner", self.proofs, make)
        self.keeper.start()

    def die(self) -> None:
        """The owner's process ends: the kernel closes its connection."""
        self.ours.close()
        self.keeper.join()

    def close(self) -> None:
        self.die()
        self.theirs.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["update", "update", "skip"]), max_size=6),
    st.sampled_from(["between steps", "before the update", "before the update of a skipped step"]),
    st.booleans(),
    st.sampled_from([1, 100, 1 << 20]),
    st.booleans(),
)
def test_every_step_that_any_rank_has_begun_can_be_had(
    steps: list[str], death: str, others_went_on: bool, at_once: int, primed: bool
) -> None:
    # LS-34
    lab, shard = Lab(at_once), Shard()
    try:
        if primed:
            lab.owner.prime(shard, 0)  # type: ignore[arg-type]
            assert lab.owner.whole
        # With so little at once a box comes with each update; the mirror is whole after as many.
        for number, kind in enumerate(["update"] * len(shard.trained) + steps):
            shard.step(number, finite=kind == "update")
            lab.owner.ship(shard, number, kind == "update")  # type: ignore[arg-type]
            if kind == "update":
                shard.update()
        completed = len(shard.trained) + len(steps)
        assert lab.owner.whole
        before = after = shard.snapshot()
        if death != "between steps":
            finite = death == "before the update"
            shard.step(completed, finite)
            lab.owner.ship(shard, completed, finite)  # type: ignore[arg-type]
            if finite:
                shard.hooks.clear()  # it dies before it can say so
                shard.update()
                after = shard.snapshot()
        lab.die()
        reached = completed + (others_went_on and death != "between steps")
        assert same(state_of(lab.keeper.state_after(reached)), after if reached > completed else before)
    finally:
        lab.close()


def test_it_is_whole_only_when_all_boxes_are_there() -> None:
    lab, shard = Lab(at_once=1), Shard()
    try:
        for number in range(3):
            assert not lab.owner.whole
            assert lab.keeper.extent() == Extent(-1, False)
            shard.step(number)
            lab.owner.ship(shard, number, True)  # type: ignore[arg-type]
            shard.update()
        assert lab.owner.whole
        assert lab.keeper.extent().reaches(3)
    finally:
        lab.close()


def test_what_is_primed_is_whole_before_the_first_step(lab: Lab) -> None:
    # LS-34
    shard = Shard()
    lab.owner.prime(shard, 7)  # type: ignore[arg-type]
    assert lab.owner.whole
    assert lab.keeper.extent() == Extent(7, False)
    lab.die()
    assert same(state_of(lab.keeper.state_after(7)), shard.snapshot())


def test_updates_are_counted_from_the_first_step_on(lab: Lab) -> None:
    """Before the commit a new world's counters are not set yet: a replay by them would make another state."""
    shard = Shard()
    lab.owner.prime(shard, 7)  # type: ignore[arg-type]
    assert not shard.hooks, "nobody watches a world that may never be"
    shard.made = 7
    for number in (7, 8):
        shard.step(number)
        lab.owner.ship(shard, number, True)  # type: ignore[arg-type]
        shard.update()
    lab.die()
    assert same(state_of(lab.keeper.state_after(9)), shard.snapshot())


def test_much_state_is_not_primed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training would stand still for it, and the keeper may still have the mirrors of the world before."""
    monkeypatch.setattr(owning, "PRIMED_BYTES", 8)
    shard = Shard()
    lab.owner.prime(shard, 0)  # type: ignore[arg-type]
    assert not lab.owner.whole
    assert lab.keeper.nbytes == 0
    shard.step(0)
    lab.owner.ship(shard, 0, True)  # type: ignore[arg-type]
    assert lab.owner.whole


def test_a_keeper_gone_before_the_first_step_costs_only_the_mirror(lab: Lab) -> None:
    lab.theirs.shutdown(socket.SHUT_RDWR)
    shard = Shard()
    lab.owner.prime(shard, 0)  # type: ignore[arg-type]
    assert lab.owner.error
    shard.step(0)
    lab.owner.ship(shard, 0, True)  # type: ignore[arg-type]


def test_a_step_that_it_does_not_reach_is_refused(lab: Lab) -> None:
    shard = Shard()
    shard.step(0)
    lab.owner.ship(shard, 0, True)  # type: ignore[arg-type]
    lab.die()
    with pytest.raises(TransferError, match="the mirror of owner does not reach step 2: it is at 0"):
        lab.keeper.state_after(2)


def test_a_keeper_that_is_gone_costs_the_mirror_and_nothing_else(lab: Lab) -> None:
    shard = Shard()
    shard.step(0)
    lab.owner.ship(shard, 0, True)  # type: ignore[arg-type]
    lab.theirs.shutdown(socket.SHUT_RDWR)
    shard.update()
    shard.step(1)
    lab.owner.ship(shard, 1, True)  # type: ignore[arg-type]
    shard.update()
    assert lab.owner.error
    assert not lab.owner.whole
    assert shard.made == 2


def test_a_frame_that_is_cut_off_changes_nothing(lab: Lab) -> None:
    shard = Shard()
    shard.step(0)
    lab.owner.ship(shard, 0, True)  # type: ignore[arg-type]
    shard.update()
    expected = shard.snapshot()
    lab.ours.sendall(Header(Kind.GRADIENTS, 1, 1, 3, 3, 8 * 14).encode() + b"\xff" * 150)
    lab.die()
    assert same(state_of(lab.keeper.state_after(1)), expected)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"\xff" * HEADER_BYTES, "what is no frame"),
        (Header(Kind.MADE, 9).encode(), "an update was made whose gradients have not come"),
        (Header(Kind.GRADIENTS, 1, 1, 2, 3).encode(), "other boxes than are due"),
        (Header(Kind.GRADIENTS, 1, 1, 3, 4).encode(), "other boxes than are due"),
        (Header(Kind.GRADIENTS, 1, 1, 3, 3, 1 << 40).encode(), "other boxes than are due"),
        (Header(Kind.GRADIENTS, 1, 1, 3, 3, 0, 5).encode() + bytes(4 * 25), "the digest of what has arrived differs"),
        (Header(Kind.PRIMED, 1, 0, 3, 3).encode(), "state came of some boxes alone, or late"),
        (Header(Kind.PRIMED, 1, 0, 0, 3).encode(), "other boxes than are due"),
        (Header(Kind.DESCRIPTION, nbytes=4).encode(), "came twice, or is too long"),
    ],
)
def test_what_is_no_mirror_ends_it_and_is_said(
    lab: Lab, frame: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    shard = Shard()
    shard.step(0)
    lab.owner.ship(shard, 0, True)  # type: ignore[arg-type]
    shard.update()
    expected = shard.snapshot()
    lab.ours.sendall(frame)
    lab.keeper.join()
    assert why in caplog.text
    assert same(state_of(lab.keeper.state_after(1)), expected), "what it had it has still"
    shard.step(1)
    lab.owner.ship(shard, 1, True)  # type: ignore[arg-type]
    assert lab.owner.error, "and its owner does not wait for it"


@pytest.mark.parametrize(
    "description",
    [
        b"\xc1",
        b"\x91\x01",
        *(
            msgspec.msgpack.encode([("w", (0,), shape, (1.0, 1.0), dtype)])
            for shape, dtype in (((3,), "load"), ((-3,), ""), ((), ""))
        ),
    ],
)
def test_what_is_no_description_is_refused(lab: Lab, description: bytes, caplog: pytest.LogCaptureFixture) -> None:
    lab.ours.sendall(Header(Kind.DESCRIPTION, nbytes=len(description)).encode() + description)
    lab.keeper.join()
    assert "sent no description" in caplog.text


def test_a_mirror_that_has_no_room_is_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeping, "available_memory", lambda: 700)
    shard = Shard()
    shard.step(0)
    lab.owner.ship(shard, 0, True)  # type: ignore[arg-type]
    assert "it takes 406 bytes, and this machine has 700 to spare" in caplog.text
    assert lab.owner.error


@pytest.mark.parametrize("error", [KeyError("memory"), OSError(24, "too many open files")], ids=["defect", "system"])
def test_whatever_fails_in_the_keeper_lets_its_owner_go(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def breaks() -> int:
        raise error

    monkeypatch.setattr(keeping, "available_memory", breaks)
    caplog.set_level("INFO")
    lab.ours.settimeout(60)
    shard = Shard()
    shard.step(0)
    lab.owner.ship(shard, 0, True)  # type: ignore[arg-type]
    assert lab.owner.error not in ("", "timed out")
    assert str(error) in caplog.text
    assert ("in breaks\n" in caplog.text) is not isinstance(error, OSError), "a defect has its traceback"


def test_a_keeper_that_fails_when_its_owner_is_gone_ends_without_another_error() -> None:
    class Gone:
        def recv_into(self, *_: object) -> int:
            raise KeyError("a defect")

        def shutdown(self, _how: int) -> None:
            raise OSError(107, "not connected")

    MirrorKeeper(Gone(), "owner", Proofs())._run()  # type: ignore[arg-type]


def test_a_rank_that_trains_nothing_has_a_mirror_of_nothing(lab: Lab) -> None:
    shard = Shard((), fixed=False)
    lab.owner.ship(shard, 0, True)  # type: ignore[arg-type]
    lab.die()
    assert state_of(lab.keeper.state_after(1)) == []


def test_training_is_not_held_up_by_replay(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The update is replayed when the owner has made it, beside the next step; then the next gradients may come."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> None:
        begun.set()
        assert go_on.wait(60)
        update(*arguments)

    shard = Shard()
    shard.step(0)
    lab.owner.ship(shard, 0, True)  # type: ignore[arg-type]
    monkeypatch.setattr(keeping, "update", slow)
    shard.update()
    assert begun.wait(60), "and the owner's thread is here already"
    go_on.set()
    lab.die()
    assert same(state_of(lab.keeper.state_after(1)), shard.snapshot())


def test_the_description_says_all_that_is_needed() -> None:
    shard = Shard()
    room = Room(decode_description(describe(shard.replica())))
    for ours, theirs in zip(shard.trained, room.replica.trained, strict=True):
        assert (ours.piece, ours.group) == (theirs.piece, theirs.group)
        assert [view.shape for view in ours.state] == [view.shape for view in theirs.state]
        assert [view.dtype for view in ours.state] == [view.dtype for view in theirs.state]
        assert ours.moments == theirs.moments
    assert ACKNOWLEDGEMENT.size == 8


def test_boxes_that_are_not_kept_alike_have_no_room() -> None:
    shard = Shard()
    odd = replace(shard.trained[0], state=tuple(view.float() for view in shard.trained[0].state))
    with pytest.raises(TransferError, match="boxes that are not kept alike"):
        Room(decode_description(describe(Replica([odd, *shard.trained[1:]], []))))


def flipped(replica: Replica) -> None:
    """A bit of what lies in the keeper's memory changes."""
    replica.trained[1].state[1].view(torch.uint8)[2] ^= 4


class Wrongly:
    """Makes updates as they are to be made, but one."""

    def __init__(self, at: int, what: str) -> None:
        self.at, self.what = at, what

    def __call__(self, boxes: Sequence[TrainedBox], updates: int, groups: Groups) -> None:
        wrong = updates == self.at and bool(boxes)
        for _ in range({"lost": 0, "doubled": 2}.get(self.what, 1) if wrong else 1):
            replay(boxes, updates, groups)
        if wrong and self.what == "flipped":
            flipped(Replica(boxes, []))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 8), st.integers(0, 9), st.sampled_from(["lost", "doubled", "flipped"]),
    st.booleans(), st.sets(st.integers(1, 7), max_size=3),
)  # fmt: skip
def test_a_mirror_replayed_wrongly_is_dropped_and_made_again(
    every: int, steps: int, at: int, what: str, primed: bool, skipped: set[int]
) -> None:
    # LS-3, LS-34
    lab, shard = Lab(every=every, make=Wrongly(at, what)), Shard()
    try:
        if primed:
            lab.owner.prime(shard, 0)  # type: ignore[arg-type]
        done = -1
        """Steps completed when it was replayed wrongly; -1: it was not."""
        for number in range(steps):
            shard.step(number, finite=number not in skipped)
            lab.owner.ship(shard, number, number not in skipped)  # type: ignore[arg-type]
            if number not in skipped:
                if shard.made == at:
                    done = number + 1
                shard.update()
        lab.die()
        proven, extent = lab.keeper.verified, lab.keeper.extent()
        made, differed = lab.proofs.counts
        assert differed <= (done >= 0), "what was sent again holds"
        assert made >= len({*range(steps)} - skipped) // (every + len(skipped)), "proofs come as often as they are to"
        if extent.step < 0:
            assert (differed, proven) == (1, -1), "it is dropped for nothing else"
            assert steps - done < every + len(skipped), "and is there again with the next update"
        elif not same(state_of(lab.keeper.state_after(steps)), shard.snapshot()):
            assert (differed, lab.proofs.last) == (0, None)
            assert proven < done, "what was proven last is said: it is of before"
            assert steps - done < every + len(skipped)
        elif differed:
            assert lab.proofs.last is not None
            assert lab.proofs.last.boxes == (("w1",) if what == "flipped" else ("w0", "w1", "w2"))
    finally:
        lab.close()


def test_what_changes_where_it_lies_is_found_before_it_is_used(lab: Lab) -> None:
    shard = Shard()
    for number in range(3):
        shard.step(number)
        lab.owner.ship(shard, number, True)  # type: ignore[arg-type]
        assert lab.keeper.extent().reaches(number)
        if number == 2:
            assert lab.keeper._room is not None
            flipped(lab.keeper._room.replica)
        shard.update()
    lab.die()
    assert lab.proofs.counts == (3, 1)
    assert lab.proofs.last == Difference("owner", 3, ("w1",))
    assert lab.keeper.extent() == Extent(-1, False)
    with pytest.raises(TransferError, match="the mirror of owner does not reach step 3: it is at -1"):
        lab.keeper.state_after(3)


def test_a_mirror_that_never_holds_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """As where the keeper's processor rounds otherwise: its state would be sent again and again."""

    def otherwise(boxes: Sequence[TrainedBox], updates: int, groups: Groups) -> None:
        replay(boxes, updates, groups)
        for box in boxes:
            box.master.mul_(1 + 1e-6)

    lab, shard = Lab(make=otherwise), Shard()
    try:
        for number in range(MOST_DIFFERENT):
            shard.step(number)
            lab.owner.ship(shard, number, True)  # type: ignore[arg-type]
            assert lab.owner.whole
            shard.update()
        shard.step(MOST_DIFFERENT)
        lab.owner.ship(shard, MOST_DIFFERENT, True)  # type: ignore[arg-type]
        assert lab.owner.error == "it differed 3 times in a row, the last time after 3 steps"
        lab.die()
        assert lab.keeper.extent() == Extent(-1, False)
    finally:
        lab.close()


def test_a_step_that_is_missing_or_comes_twice_ends_the_mirror(caplog: pytest.LogCaptureFixture) -> None:
    for next_one in (1, 3):
        lab, shard = Lab(), Shard()
        try:
            for number in (0, 1):
                shard.step(number)
                lab.owner.ship(shard, number, True)  # type: ignore[arg-type]
                shard.update()
            shard.step(next_one)
            lab.owner.ship(shard, next_one, True)  # type: ignore[arg-type]
            assert lab.owner.error
            assert f"step {next_one} came, and step 2 was due" in caplog.text
        finally:
            lab.close()
