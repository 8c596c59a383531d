"""Parity over the connections of real workers: who is left rebuilds what is lost, and goes back, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist
from coordinator_lab import until
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_shard import Shard, same

from liver_slurm.base.errors import TransferError
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.reshard.parity import choose, groups
from liver_slurm.reshard.snapshots import Survivor, newest_common
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.mirror.frames import decode_description, describe
from liver_slurm.transfer.mirror.host_room import Rooms
from liver_slurm.transfer.mirror.proof import Proofs
from liver_slurm.transfer.mirror.snapshot import parts_of, tensors_of
from liver_slurm.transfer.mirror.snapshot_sender import SnapshotSender
from liver_slurm.worker.mirroring import Meeting, Mirrors
from liver_slurm.worker.mirrors import open_mirrors
from liver_slurm.worker.refreshed import Refreshed

CPU = torch.device("cpu")
_Result = TypeVar("_Result")


class World:
    """Workers on hosts, all of whose mirrors are refreshed every two steps."""

    def __init__(self, hosts: Sequence[str], group: int) -> None:
        self.names = [f"w{rank}" for rank in range(len(hosts))]
        self.hosts, self.group = hosts, group
        self.store = dist.HashStore()
        self.shards = [Shard(rank) for rank in range(len(hosts))]
        self.states: list[dict[int, list[torch.Tensor]]] = [{} for _ in hosts]
        self.live = [0] * len(hosts)
        self.proofs = [Proofs() for _ in hosts]
        world = Membership(1, Layout(1, 1, len(hosts)), tuple(self.names))
        choice = choose((), hosts, every=2, group=group)
        store = dist.PrefixStore("mirrors", self.store)
        connections = [Connections(store, rank, len(hosts), True, "lo") for rank in range(len(hosts))]
        self.mirrors: list[Mirrors] = self.all(
            range(len(hosts)),
            lambda rank: open_mirrors(connections[rank], world, rank, hosts, choice, Rooms(None), self.proofs[rank]),
        )
        for mirrors, shard in zip(self.mirrors, self.shards, strict=True):
            mirrors.attach(shard)  # type: ignore[arg-type]

    @staticmethod
    def all(ranks: Sequence[int], call: Callable[[int], _Result]) -> list[_Result]:
        """Each in a thread of its own."""
        with ThreadPoolExecutor(max(1, len(ranks))) as pool:
            return list(pool.map(call, ranks))

    def gradients_final(self, step: int) -> None:
        def final(rank: int) -> None:
            call = self.shards[rank].gradients_final
            assert call is not None
            call(step, True)

        self.all(range(len(self.shards)), final)

    def update(self, ranks: Sequence[int], step: int) -> None:
        for rank in ranks:
            self.states[rank][step] = self.shards[rank].state()
            self.shards[rank].update(step)
            self.live[rank] = step + 1

    def whole(self) -> int:
        """Train until all are kept; the steps that takes."""

        def one_more() -> bool:
            if all(mirrors.word == "whole" for mirrors in self.mirrors):
                return True
            step = self.live[0]
            self.gradients_final(step)
            self.update(range(len(self.shards)), step)
            return False

        until(one_more, "all are kept")
        return self.live[0]

    def die(self, gone: int) -> list[Survivor]:
        """What the others say."""
        self.mirrors[gone].close()
        for mirrors in self.mirrors:
            mirrors.abort()
        said = []
        for rank, mirrors in enumerate(self.mirrors):
            held = mirrors.holds()
            if rank != gone:
                said.append(Survivor(self.names[rank], self.live[rank], held.own, held.snapshots))
        return said

    def rebuild(self, left: Sequence[int], lost: dict[str, str], step: int, attempt: str = "1") -> None:
        store = dist.PrefixStore(f"rebuild{attempt}", self.store)

        def one(rank: int) -> None:
            def connect() -> Connections:
                return Connections(store, rank, len(self.names), True, "lo")

            self.mirrors[rank].rebuild(lost, step, Meeting(self.names, connect))

        self.all(left, one)

    def close(self) -> None:
        for mirrors in self.mirrors:
            mirrors.close()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), min_size=3, max_size=6),
    st.integers(1, 3),
    st.integers(0, 3),
    st.sampled_from(["between steps", "before the update", "some have begun it"]),
    st.data(),
)
def test_what_is_lost_is_rebuilt_and_all_go_back(
    hosts: list[str], group: int, steps: int, death: str, data: st.DataObject
) -> None:
    # LS-3, LS-34
    world = World(hosts, group)
    everybody = range(len(hosts))
    try:
        for step in range(now := world.whole() + steps):
            if step >= world.live[0]:
                world.gradients_final(step)
                world.update(everybody, step)
        if death != "between steps":
            world.gradients_final(now)
        if death == "some have begun it":
            world.update(sorted(data.draw(st.sets(st.sampled_from(everybody)))), now)
        gone = data.draw(st.sampled_from(everybody))
        for rank in everybody:
            world.states[rank].setdefault(world.live[rank], world.shards[rank].state())
        found = newest_common(world.die(gone), [world.names[gone]])
        assert found is not None
        step, lost = found
        left = [rank for rank in everybody if rank != gone]
        world.rebuild(left, lost, step)
        world.rebuild(left, lost, step, "2")  # the first attempt was given up
        keeper = world.mirrors[world.names.index(lost[world.names[gone]])]
        rebuilt = keeper.state_after(world.names[gone], step, CPU)
        assert same(tensors_of(rebuilt), world.states[gone][step])
        for rank in left:
            if world.live[rank] != step:
                world.mirrors[rank].go_back(world.shards[rank], step)  # type: ignore[arg-type]
            assert same(world.shards[rank].state(), world.states[rank][step])
    finally:
        world.close()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2), st.sampled_from(["the keeper's", "its own"]), st.data())
def test_a_bit_that_flips_where_it_lies_is_found_before_it_is_used(group: int, whose: str, data: st.DataObject) -> None:
    """In a copy, in a parity, or in what one that goes back has put by of itself."""
    # LS-3, LS-34
    world = World("abc", group)
    try:
        world.whole()
        gone = 0
        step, lost = newest_common(world.die(gone), [world.names[gone]]) or (-1, {})
        left, by = [1, 2], world.names.index(lost[world.names[gone]])
        keeper = world.mirrors[by]
        assert isinstance(keeper, Refreshed)
        harmed = gone if whose == "the keeper's" else data.draw(st.sampled_from(left))
        boxes = decode_description(describe(world.shards[harmed].replica()))
        part = data.draw(st.sampled_from(parts_of(boxes)))
        at = part.start + data.draw(st.integers(0, part.nbytes - 1))
        if whose == "the keeper's":
            (kept,) = [one for one in keeper._keepers if world.names[gone] in one.owners]
            place = next(one.data for one in kept._kept() if one.step == step)
        else:
            place = replica_bytes(world.mirrors[harmed], step)
        place[at] ^= 1 << data.draw(st.integers(0, 7))
        world.rebuild(left, lost, step)
        if whose == "the keeper's":
            with pytest.raises(TransferError, match=f"the mirror of w0 is not what that had after {step} steps: "):
                keeper.state_after(world.names[gone], step, CPU)
            assert world.proofs[by].counts == (1, 1)
            held = keeper.holds()
            assert not any(step in one.steps for one in held.snapshots if world.names[gone] in one.owners)
        else:
            with pytest.raises(TransferError, match=f"what is put by here of step {step} is not what was alive then"):
                world.mirrors[harmed].go_back(world.shards[harmed], step)  # type: ignore[arg-type]
            assert step not in world.mirrors[harmed].holds().own, "nobody plans with it any more"
            assert world.shards[harmed].was_overwritten, "nor with what was alive"
    finally:
        world.close()


def test_a_next_world_that_was_given_up_leaves_the_mirrors_as_they_are() -> None:
    """To prepare it each member asks what is lost; nothing is, and training goes on."""
    # LS-7, LS-34
    world = World("abc", 1)
    try:
        prepared = world.whole()
        world.rebuild(range(3), {}, prepared)
        for step in range(prepared, prepared + 4):
            world.gradients_final(step)
            world.update(range(3), step)
        assert [mirrors.word for mirrors in world.mirrors] == ["whole"] * 3
        for rank in range(3):
            world.states[rank].setdefault(world.live[rank], world.shards[rank].state())
        step, lost = newest_common(world.die(0), ["w0"]) or (-1, {})
        assert step > prepared
        kept = world.mirrors[world.names.index(lost["w0"])].state_after("w0", step, CPU)
        assert same(tensors_of(kept), world.states[0][step])
    finally:
        world.close()


def replica_bytes(mirrors: Mirrors, step: int) -> torch.Tensor:
    """The bytes of what a worker has put by of itself, as they lie there."""
    assert isinstance(mirrors, Refreshed)
    if isinstance(mirrors._owner, SnapshotSender):
        return mirrors._owner._place_of(step).data
    data = mirrors._owner.state_at(step).trained[0].master
    return torch.empty(0, dtype=torch.uint8).set_(data.untyped_storage())


def test_two_that_rebuild_for_each_other_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each group is lost, and what is sent does not fit into a socket."""
    hosts = ["a"] * 4
    by_owner = {rank: group for group in groups(hosts, 2) for rank in group.owners}
    large = 1 << 20
    monkeypatch.setattr("snapshot_shard.SHAPES", [((large,),)])
    world = World(hosts, 2)
    try:
        world.gradients_final(0)
        world.update(range(4), 0)
        gone = next(
            {one, other}
            for one in range(4)
            for other in range(4)
            if by_owner[one] != by_owner[other] and not {by_owner[one].keeper, by_owner[other].keeper} & {one, other}
        )
        said = [one for one in world.die(min(gone)) if one.name != world.names[max(gone)]]
        found = newest_common(said, [world.names[rank] for rank in gone])
        assert found is not None
        step, lost = found
        world.rebuild([rank for rank in range(4) if rank not in gone], lost, step)
        for rank in gone:
            keeper = world.mirrors[world.names.index(lost[world.names[rank]])]
            assert same(tensors_of(keeper.state_after(world.names[rank], 0, CPU)), world.states[rank][0])
    finally:
        world.close()


def test_a_lender_that_dies_meanwhile_ends_the_attempt() -> None:
    world = World(["a"] * 4, 2)
    try:
        world.gradients_final(0)
        world.update(range(4), 0)
        group = next(group for group in groups(world.hosts, 2) if 0 in group.owners)
        world.die(0)
        (lender,) = set(group.owners) - {0}
        store = dist.PrefixStore("rebuild", world.store)
        lent: Any = Connections(store, lender, 4, True, "lo")
        meeting = Meeting(world.names, lambda: Connections(store, group.keeper, 4, True, "lo"))
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(world.mirrors[group.keeper].rebuild, {"w0": world.names[group.keeper]}, 0, meeting)
            lent.outgoing(group.keeper).sendall(b"\x05")
            lent.close()
            with pytest.raises(TransferError, match="went away while state was rebuilt from parity"):
                waits.result(60)
        with pytest.raises(TransferError, match="the state of w0 was not rebuilt from parity"):
            world.mirrors[group.keeper].state_after("w0", 0, CPU)
    finally:
        world.close()
