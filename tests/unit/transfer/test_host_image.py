"""The image of a target world's state in host memory: the boxes of its rank, loaded bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from target_lab import CPU, Workers, same, snapshot
from tiny_engine import TinyShard, tiny_spec

from liver_slurm.base.errors import TransferError
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.shard_spec import WorldSpec, pieces
from liver_slurm.transfer.box_index import ReplicaIndex, speaks
from liver_slurm.transfer.host_image import HostImage
from liver_slurm.transfer.mirror.host_room import Rooms

LAYOUT = Layout(1, 1, 2)


def world(distributed: bool) -> WorldSpec:
    return WorldSpec(LAYOUT, {(0, 0): tiny_spec()}, distributed, "fp32", derived=True)


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_it_has_a_place_of_its_own_for_every_piece(distributed: bool, rank: int) -> None:
    spec = world(distributed)
    image = HostImage(spec, rank, Rooms(None), CPU)
    index = ReplicaIndex(image.replica)
    found: set[tuple[int, int]] = set()
    for number, piece in enumerate(filter(lambda piece: speaks(piece.tensor), pieces(spec, rank))):
        for view in index.shared(piece).state:
            assert tuple(view.shape) == piece.shape
            view.fill_(number)
            found.add((view.data_ptr(), view.nbytes))
    ends = sorted((start, start + size) for start, size in found)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(ends))
    image.close()


def test_it_is_loaded_bit_for_bit() -> None:
    workers = Workers()
    try:
        source, target = (workers.first_world().state for _ in range(2))
        assert isinstance(source, TinyShard)
        assert isinstance(target, TinyShard)
        one = WorldSpec(Layout(1, 1, 1), {(0, 0): tiny_spec()}, False, "fp32", derived=True)
        image = HostImage(one, 0, Rooms(None), CPU)
        index = ReplicaIndex(image.replica)
        for piece in filter(lambda piece: speaks(piece.tensor), pieces(one, 0)):
            for view, held in zip(
                index.shared(piece).state, ReplicaIndex(source.replica()).shared(piece).state, strict=True
            ):
                held.detach().uniform_()
                view.copy_(held.detach())
        assert not same(snapshot(source), snapshot(target))
        image.load(target)
        assert same(snapshot(source), snapshot(target))
    finally:
        workers.close()


def test_a_shard_of_other_boxes_is_refused() -> None:
    workers = Workers()
    try:
        shard = workers.first_world().state
        assert shard is not None
        half = HostImage(world(True), 0, Rooms(None), CPU)
        with pytest.raises(TransferError, match="is not held here"):
            half.load(shard)
    finally:
        workers.close()


def test_its_memory_is_kept_for_the_next() -> None:
    rooms = Rooms(None)
    first = HostImage(world(False), 0, rooms, CPU)
    place = first.replica.trained[0].master.data_ptr()
    first.close()
    first.close()
    kept = rooms.spare_bytes
    assert kept >= first.nbytes
    second = HostImage(world(False), 1, rooms, CPU)
    assert second.replica.trained[0].master.data_ptr() == place
    assert rooms.spare_bytes == 0
    assert not first.replica.trained
    second.close()
    assert rooms.spare_bytes == kept


def test_nobody_updates_it() -> None:
    image = HostImage(world(False), 0, Rooms(None), CPU)
    assert {box.gradient().device for box in image.replica.trained} == {torch.device("meta")}
    image.close()
