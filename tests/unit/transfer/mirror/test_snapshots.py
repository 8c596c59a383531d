"""Mirrors that are refreshed while training waits: whoever dies, whenever, one step is there of all."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_shard import Shard, same
from snapshot_world import World

from liver_slurm.base.errors import TransferError
from liver_slurm.reshard.snapshots import newest_common
from liver_slurm.transfer.mirror import snapshot as snapshots
from liver_slurm.transfer.mirror import snapshot_keeper as keeping
from liver_slurm.transfer.mirror.frames import Header, Kind, decode_description, describe
from liver_slurm.transfer.mirror.host_room import PAGE
from liver_slurm.transfer.mirror.snapshot import copy, parts_of, replica_in, room_of, tensors_of


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    sizes = draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
    ranks = iter(draw(st.permutations(range(sum(sizes)))))
    groups = [[next(ranks) for _ in range(size)] for size in sizes]
    others = [[rank for other in groups if other is not group for rank in other] for group in groups]
    return groups, [draw(st.sampled_from(some)) for some in others]


@settings(max_examples=60, deadline=None)
@given(
    worlds(),
    st.integers(1, 3),
    st.lists(st.booleans(), max_size=6),
    st.sampled_from(["between steps", "while it is sent", "all was sent", "some have begun the update"]),
    st.data(),
)
def test_whoever_dies_whenever_all_have_one_step(
    world: tuple[list[list[int]], list[int]], every: int, steps: list[bool], death: str, data: st.DataObject
) -> None:
    # LS-3, LS-34
    groups, kept_by = world
    run = World(groups, kept_by, every)
    try:
        for number, finite in enumerate([True, *steps]):
            run.step(number, finite)
        now, everybody = 1 + len(steps), [*range(run.size)]
        gone = data.draw(st.sampled_from(everybody))
        if death == "while it is sent":
            some = data.draw(st.sets(st.sampled_from(everybody))) - {gone}
            run.gradients_final(sorted(some), now)
            if run.owners[gone]._due <= now:
                run.send_a_part(gone, now)
        elif death != "between steps":
            run.gradients_final(everybody, now)
        if death == "some have begun the update":
            run.update(sorted(data.draw(st.sets(st.sampled_from(everybody), min_size=1)) - {gone}), now)
        left = run.die({gone})
        keeper = next(by for group, by in zip(groups, kept_by, strict=True) if gone in group)
        found = newest_common(left, [str(gone)])
        assert found is not None
        step, keepers = found
        assert keepers == {str(gone): str(keeper)}
        assert step >= now - every - len([one for one in steps if not one]), "no older than it has to be"
        assert same(run.state_of(gone, step), run.states[gone][step])
        for rank in set(everybody) - {gone}:
            assert same(tensors_of(run.own_state(rank, step)), run.states[rank][step])
    finally:
        run.close()


@pytest.fixture
def pair() -> Iterator[World]:
    world = World([[0], [1]], [1, 0], every=2)
    yield world
    world.close()


def test_a_refresh_is_due_every_so_many_steps(pair: World) -> None:
    for number in range(5):
        pair.step(number)
        assert [one.own_steps for one in pair.owners.values()] == [(number // 2 * 2,)] * 2
        assert pair.keepers[0].steps()[-1] == number // 2 * 2


def test_a_step_without_an_update_refreshes_nothing_and_the_next_one_does(pair: World) -> None:
    pair.step(0)
    pair.step(1)
    pair.step(2, finite=False)
    assert pair.owners[0].own_steps == (0,)
    pair.step(3)
    assert pair.owners[0].own_steps == (3,)


def test_a_shard_goes_back(pair: World) -> None:
    for number in range(4):
        pair.step(number)
    shard = pair.shards[0]
    assert not same(shard.state(), pair.states[0][2])
    copy(pair.owners[0].state_at(2), shard.replica())
    assert same(shard.state(), pair.states[0][2])
    assert pair.owners[0].updates_at(2) == 2
    with pytest.raises(TransferError, match="after 3 steps is not put by here, but that after"):
        pair.owners[0].state_at(3)


def test_a_keeper_that_is_gone_costs_the_mirror_and_nothing_else(pair: World) -> None:
    pair.step(0)
    pair.pairs[0][1].shutdown(socket.SHUT_RDWR)
    for number in range(1, 4):
        pair.step(number)
    assert pair.owners[0].error
    assert [owner.own_steps for owner in pair.owners.values()] == [(2,), (2,)]
    assert pair.owners[1].sent == 2


def test_two_of_a_group_are_not_to_be_had() -> None:
    run = World([[0, 1], [2]], [2, 0], every=1)
    try:
        run.step(0)
        assert newest_common(run.die({0, 1}), ["0", "1"]) is None
    finally:
        run.close()


def test_one_that_fails_ends_the_mirror_of_its_whole_group(caplog: pytest.LogCaptureFixture) -> None:
    run = World([[0, 1], [2]], [2, 0], every=1)
    try:
        run.step(0)
        run.pairs[0][0].sendall(Header(Kind.MADE, 7).encode())
        run.keepers[0].join()
        assert "an owner sent what is not due" in caplog.text
        run.step(1)
        assert all(run.owners[rank].error for rank in (0, 1))
        assert run.owners[2].sent == 1
    finally:
        run.close()


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"\xff" * 56, "what is no frame"),
        (Header(Kind.GRADIENTS, 1).encode(), "what is not due"),
        (Header(Kind.STATE, 0).encode(), "which is not due"),
        (Header(Kind.DESCRIPTION, nbytes=4).encode(), "a description came twice"),
        (Header(Kind.SHARED, nbytes=4, last=4).encode(), "a description came twice"),
        (Header(Kind.STATE, 1).encode(), "with the digests of other boxes"),
        (Header(Kind.STATE, 1, nbytes=8 * 9).encode() + bytes(8 * 9 + 8), "with the digests of other boxes"),
        (Header(Kind.STATE, 1, nbytes=8 * 8).encode() + bytes(7 * PAGE + 8 * 9), "what has arrived differs"),
    ],
)
def test_what_is_no_snapshot_changes_none(
    pair: World, frame: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    pair.step(0)
    pair.pairs[0][0].sendall(frame)
    pair.keepers[0].join()
    assert why in caplog.text
    assert same(pair.state_of(0, 0), pair.states[0][0])
    with pytest.raises(TransferError, match="of 0 the state after 1 steps is not kept here"):
        pair.state_of(0, 1)


def test_a_mirror_that_has_no_room_is_refused(
    pair: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeping, "available_memory", lambda: 300)
    pair.step(0)
    assert "bytes more, and this machine has 300 to spare" in caplog.text
    assert all(owner.error for owner in pair.owners.values())


def test_large_tensors_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "CHUNK", 16)
    run = World([[0, 1], [2]], [2, 0], every=1)
    try:
        run.step(0)
        run.step(1)
        run.die({1})
        assert same(run.state_of(1, 1), run.states[1][1])
    finally:
        run.close()


def test_a_snapshot_has_room_for_all_and_says_where() -> None:
    shard = Shard(0)
    boxes = decode_description(describe(shard.replica()))
    parts = parts_of(boxes)
    assert all(part.start % PAGE == 0 for part in parts)
    assert all(one.start + one.nbytes <= other.start for one, other in pairwise(parts))
    other = replica_in(torch.zeros(room_of(parts), dtype=torch.uint8), boxes)
    copy(shard.replica(), other)
    assert same(tensors_of(other), shard.state())
    assert [box.piece for box in other.trained] == [box.piece for box in shard.trained]
    assert room_of([]) == 0
