"""Mirrors that are refreshed beside training: whoever dies, whenever, one step is there of all, and nobody waits."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_shard import Shard, same
from snapshot_world import World

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Replica
from liver_slurm.parallel import shared_memory
from liver_slurm.reshard.snapshots import newest_common
from liver_slurm.transfer.mirror import host_room
from liver_slurm.transfer.mirror.frames import BoxDescription, Header, Kind
from liver_slurm.transfer.mirror.host_room import HostRoom, Lease
from liver_slurm.transfer.mirror.snapshot import tensors_of
from liver_slurm.transfer.mirror.snapshot_sender import SnapshotSender

PATIENCE = 60.0


class Sender(SnapshotSender):
    """Sends when it may, and breaks off in the midst of it where it is told to."""

    def __init__(self, connection: socket.socket, every: int, lease: Lease) -> None:
        super().__init__(connection, every, lease, alone=True)
        self.may, self.breaks_off = threading.Event(), False
        self.may.set()

    def _send(self, step: int) -> None:
        if not self.may.wait(PATIENCE):
            raise RuntimeError("nobody has allowed it")
        if self.breaks_off and self._mapped:
            return
        if self.breaks_off:
            with contextlib.suppress(BrokenPipeError):  # the keeper is gone, too
                self._connection.sendall(Header(Kind.STATE, step, 0).encode() + b"\x55" * 3)
            return
        super()._send(step)


class FarSender(Sender):
    """Its keeper is on another machine."""

    def __init__(self, connection: socket.socket, every: int, lease: Lease) -> None:
        super().__init__(connection, every, lease)
        self._shares = False


SENDERS = (Sender, FarSender)


class Paced(Sender):
    """As on a card: refreshes come where all have agreed that they hold nobody up."""

    def __init__(self, connection: socket.socket, every: int, lease: Lease) -> None:
        super().__init__(connection, every, lease)
        self._waits_for_all = True

    def timed(self, took: float, step: float) -> None:
        """The last snapshot took so long to arrive, and the last step."""
        assert self._arrived.wait(PATIENCE)
        self._took_s, self._step_s = took, step


class Ring(World):
    """Each rank is kept by the next one."""

    def __init__(self, size: int, every: int, sender: type[Sender] = Sender) -> None:
        super().__init__([[rank] for rank in range(size)], [(rank + 1) % size for rank in range(size)], every, sender)
        self.step(0)
        self.arrived()

    def sender(self, rank: int) -> Sender:
        found = self.owners[rank]
        assert isinstance(found, Sender)
        return found

    def arrived(self) -> None:
        """Wait until keepers have what they were sent."""
        for rank in self.owners:
            assert self.sender(rank)._arrived.wait(PATIENCE)

    def close(self) -> None:
        for rank in self.owners:
            self.sender(rank).may.set()
        super().close()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 4),
    st.integers(1, 3),
    st.lists(st.booleans(), max_size=7),
    st.sampled_from(["between steps", "before the update", "some have begun the update"]),
    st.sampled_from(SENDERS),
    st.data(),
)
def test_whoever_dies_whenever_all_have_one_step(
    size: int, every: int, steps: list[bool], death: str, sender: type[Sender], data: st.DataObject
) -> None:
    # LS-3, LS-34
    run = Ring(size, every, sender)
    everybody = range(size)
    try:
        for number, finite in enumerate(steps, start=1):
            run.step(number, finite)
        run.arrived()
        now = 1 + len(steps)
        gone = data.draw(st.sampled_from(everybody))
        slow = data.draw(st.sets(st.sampled_from(everybody)))
        for rank in slow:
            run.sender(rank).may.clear()
        run.sender(gone).breaks_off = data.draw(st.booleans())
        if death != "between steps":
            run.gradients_final([*everybody], now)
        if death == "some have begun the update":
            run.update(sorted(data.draw(st.sets(st.sampled_from(everybody), min_size=1))), now)
        for rank in everybody:
            if not run.shards[rank].trained:  # its state is the same after the update that others have begun
                run.states[rank].setdefault(now + 1, run.shards[rank].state())
        for rank in {*everybody} - slow:
            assert run.sender(rank)._arrived.wait(PATIENCE), "whoever may send has sent"
        left = run.die({gone})
        found = newest_common(left, [str(gone)])
        assert found is not None
        step, keepers = found
        assert keepers == {str(gone): str((gone + 1) % size)}
        assert step >= now - every - len([one for one in steps if not one]), "no older than it has to be"
        assert same(run.state_of(gone, step), run.states[gone][step])
        for rank in {*everybody} - {gone}:
            assert same(tensors_of(run.own_state(rank, step)), run.states[rank][step])
    finally:
        run.close()


class Patient(Sender):
    """As on a card, where room takes a while."""

    def __init__(self, connection: socket.socket, every: int, lease: Lease) -> None:
        super().__init__(connection, every, lease)
        self._waits_for_all, self.has_room = True, threading.Event()

    def _make_room(self, boxes: list[BoxDescription]) -> None:
        assert self.has_room.wait(PATIENCE)
        super()._make_room(boxes)


def test_where_room_takes_a_while_the_first_refresh_comes_when_all_are_ready() -> None:
    # LS-34
    run = World([[0], [1]], [1, 0], 50, Patient)
    first, second = (owner for owner in run.owners.values() if isinstance(owner, Patient))
    try:
        first.has_room.set()
        assert first._ready.wait(PATIENCE)
        assert [owner.ready for owner in (first, second)] == [True, False]
        run.step(0)
        assert (first.own_steps, second.own_steps) == ((), ()), "and no step waits for it"
        second.has_room.set()
        assert second._ready.wait(PATIENCE)
        run.step(1)
        assert first.own_steps == (), "it cannot know yet that the other one is ready, too"
        for owner in (first, second):
            owner.all_ready()
        run.step(2)
        for owner in (first, second):
            assert owner._arrived.wait(PATIENCE)
            owner.all_ready()
            assert owner.sent == 3
        run.step(3)
        assert first.own_steps == (3,), "from then on they come as they were asked for"
    finally:
        run.close()


@pytest.mark.parametrize(
    ("every", "took", "put_by"),
    [
        (1, 0.1, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        (1, 1.1, [2, 4, 6, 8, 10, 12]),
        (1, 2.9, [2, 6, 10]),
        (3, 0.1, [2, 5, 8, 11]),
        (3, 2.9, [2, 6, 10]),
    ],
)
def test_a_refresh_comes_as_often_as_it_holds_nobody_up(every: int, took: float, put_by: list[int]) -> None:
    """One of two ranks takes longer than a step of one second; the other one is as fast as can be."""
    run = World([[0], [1]], [1, 0], every, Paced)
    senders = [owner for owner in run.owners.values() if isinstance(owner, Paced)]
    found = list[int]()
    try:
        for sender in senders:
            assert sender._ready.wait(PATIENCE)
        for step in range(12):
            ready = all(sender.ready for sender in senders)  # as the members of a world agree on it
            run.step(step)
            for sender, seconds in zip(senders, (took, 0.0), strict=True):
                assert sender.own_steps == senders[0].own_steps, "at the same steps"
                sender.timed(seconds, 1.0)
                if ready:
                    sender.all_ready()
            found += [each for each in senders[0].own_steps if each not in found]
        assert found == put_by
    finally:
        run.close()


def test_there_is_no_next_snapshot_before_it_is_known_how_long_one_takes() -> None:
    """Training would wait for the first of them, or for one that takes much longer than the last."""
    run = World([[0], [1]], [1, 0], 1, Paced)
    senders = [owner for owner in run.owners.values() if isinstance(owner, Paced)]

    def put_by(step: int) -> None:
        for sender in senders:
            sender.may.clear()
            sender.all_ready()
        run.step(step)
        assert {sender.own_steps[-1] for sender in senders} == {step + 1}

    try:
        for sender in senders:
            assert sender._ready.wait(PATIENCE)
        run.step(0)
        assert all(sender.ready for sender in senders)
        put_by(1)
        for sender in senders:
            sender._step_s = 1000.0
            assert not sender.ready, "nobody knows when the first one arrives"
            sender.may.set()
            assert sender._arrived.wait(PATIENCE)
            assert sender.ready
        put_by(2)
        for sender in senders:
            sender._step_s = 1000.0
            assert sender.ready, "it will have arrived by then, as the last one had"
            sender._put_at -= 10_000.0
            assert not sender.ready
    finally:
        for sender in senders:
            sender.may.set()
        run.close()


def test_a_rank_that_has_nothing_to_put_by_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shard, "replica", lambda _: Replica([], []))
    run = World([[0], [1]], [1, 0], 1, Paced)
    try:
        for step in range(4):
            for sender in run.owners.values():
                assert isinstance(sender, Paced)
                assert sender._ready.wait(PATIENCE)
                assert sender.ready
                sender.all_ready()
            run.step(step)
    finally:
        run.close()


def test_what_a_keeper_has_mapped_is_not_sent_and_takes_memory_once() -> None:
    ring = Ring(2, every=1)
    try:
        for sender, keeper in zip(map(ring.sender, range(2)), ring.keepers, strict=True):
            assert sender._mapped
            assert keeper.nbytes == 0
            ours, theirs = sender._places[0].shared, keeper._shared[0]
            assert (ours.step, ours.digests) == (theirs.step, theirs.digests) == (1, sender.digests_at(1))
            assert torch.equal(ours.data, theirs.data)
        ring.sender(0).breaks_off = True
        ring.step(1)
        assert ring.sender(0)._arrived.wait(PATIENCE)
        assert ring.keepers[0].steps() == (1,), "what its owner was still writing when it died is not counted"
        ring.step(2)
        assert ring.sender(0)._arrived.wait(PATIENCE)
        assert ring.keepers[0].steps() == (), "nor is what it was writing over"
    finally:
        ring.close()


def test_what_cannot_be_mapped_is_sent(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError("not yours")

    monkeypatch.setattr(shared_memory, "open_file", refuse)
    caplog.set_level("INFO")
    ring = Ring(2, every=1)
    try:
        assert "the snapshots of 0 are sent, as they cannot be mapped: not yours" in caplog.text
        assert [keeper.steps() for keeper in ring.keepers] == [(1,), (1,)]
        assert all(keeper.nbytes for keeper in ring.keepers)
    finally:
        ring.close()


@pytest.fixture(params=SENDERS)
def pair(request: pytest.FixtureRequest) -> Iterator[Ring]:
    ring = Ring(2, every=2, sender=request.param)
    yield ring
    ring.close()


def test_training_goes_on_while_it_is_sent_and_waits_before_the_next(pair: Ring) -> None:
    pair.sender(0).may.clear()
    for number in (1, 2, 3):
        pair.step(number)
    assert [owner.own_steps for owner in pair.owners.values()] == [(1, 3)] * 2
    assert pair.owners[0].sent == 1, "it may not send yet"
    waits = threading.Thread(target=pair.gradients_final, args=([0, 1], 4))
    waits.start()
    waits.join(0.2)
    assert waits.is_alive(), "the next update would make a state that gives the first one up"
    pair.sender(0).may.set()
    waits.join(PATIENCE)
    assert not waits.is_alive()
    pair.update([0, 1], 4)
    pair.arrived()
    assert [owner.own_steps for owner in pair.owners.values()] == [(3, 5)] * 2
    assert [owner.sent for owner in pair.owners.values()] == [5, 5]
    assert pair.owners[0].updates_at(3) == 3


def test_a_step_without_an_update_puts_nothing_by(pair: Ring) -> None:
    pair.step(1)
    pair.step(2, finite=False)
    assert pair.owners[0].own_steps == (1,)
    pair.step(3)
    assert pair.owners[0].own_steps == (1, 4)


def test_a_keeper_that_is_gone_holds_nobody_up(pair: Ring) -> None:
    pair.pairs[0][1].shutdown(socket.SHUT_RDWR)
    for number in range(1, 6):
        pair.step(number)
    assert pair.owners[0].error
    assert [owner.own_steps for owner in pair.owners.values()] == [(3, 5)] * 2
    pair.arrived()
    assert pair.owners[1].sent == 5


def test_without_room_there_is_no_mirror_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> HostRoom:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(host_room, "HostRoom", none)
    ring = Ring(2, every=1)
    try:
        for number in range(3):
            ring.step(number)
        assert [owner.own_steps for owner in ring.owners.values()] == [(), ()]
        assert "no mirror any more: can't allocate memory" in caplog.text
    finally:
        ring.close()


class Defective(Sender):
    """A defect in the thread that sends, where it makes room or later."""

    where = ""

    def _make_room(self, boxes: list[BoxDescription]) -> None:
        if self.where == "room":
            raise msgspec.DecodeError("a box that there is not")
        super()._make_room(boxes)

    def _describe(self, description: bytes) -> None:
        if self.where == "describe":
            raise KeyError(7)
        super()._describe(description)

    def _send(self, step: int) -> None:
        if self.where == "send":
            raise TransferError(f"the state after {step} steps is not put by here")
        super()._send(step)


@pytest.mark.parametrize("where", ["room", "describe", "send"])
def test_no_defect_makes_training_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    monkeypatch.setattr(Defective, "where", where)
    run = World([[0], [1]], [1, 0], 1, Defective)
    try:
        done = threading.Thread(target=lambda: [run.step(number) for number in range(3)], daemon=True)
        done.start()
        done.join(PATIENCE)
        assert not done.is_alive()
        (owner, _) = run.owners.values()
        assert isinstance(owner, Defective)
        assert owner._arrived.wait(PATIENCE)
        assert owner.error
        traces = [record.exc_info for record in caplog.records if "no mirror any more" in record.getMessage()]
        assert all(bool(trace) is (where != "send") for trace in traces), "a message of ours says it all"
        assert traces
    finally:
        run.close()


def test_connections_that_are_given_up_are_no_news(pair: Ring, caplog: pytest.LogCaptureFixture) -> None:
    pair.sender(0).may.clear()
    for number in (1, 2):
        pair.step(number)
    pair.die(set())
    pair.sender(0).may.set()
    pair.sender(0)._arrived.wait(PATIENCE)
    assert pair.owners[0].error
    assert "no mirror any more" not in caplog.text
