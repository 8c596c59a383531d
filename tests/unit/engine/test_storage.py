"""The memory of a world that is over, and what else it leaves behind."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from paced_samples import PacedSamples
from worker_lab import job

from liver_slurm.engine.megatron.shard import MegatronShard, build_shard
from liver_slurm.engine.replica import every_layer
from liver_slurm.engine.storage import Moments, held_bytes, reclaim, release, show, touch
from liver_slurm.parallel import shared_memory
from liver_slurm.parallel.c10d import set_default_group
from liver_slurm.parallel.groups import ProcessGroups, build_world
from liver_slurm.parallel.layout import Layout
from liver_slurm.parallel.membership import Membership
from liver_slurm.parallel.shared_memory import places

CPU = torch.device("cpu")


class Worlds:
    """Makes worlds of one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[ProcessGroups] = []

    def trained(self, distributed: bool, old: MegatronShard | None = None) -> MegatronShard:
        """A world that has trained a step; with ``old``'s storage where it may share it."""
        config = job(self._folder)
        config = replace(config, train=replace(config.train, distributed_optimizer=distributed))
        me = Membership(len(self._made), Layout(1, 1, 1), ("me",))
        world = build_world(me, "me", dist.HashStore(), "gloo", CPU, timedelta(minutes=1))
        self._made.append(world)
        state = build_shard(config, world, CPU, fresh=True)
        if old is not None:
            state.share_storage(old)
        step(state)
        return state

    def destroy(self) -> None:
        set_default_group(None)
        for world in self._made:
            world.destroy()


@pytest.fixture
def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worlds]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    made = Worlds(tmp_path)
    yield made
    made.destroy()


def step(state: MegatronShard) -> float:
    state.make_live()
    return state.train_step(PacedSamples(state.config), 0).loss


def in_memory_file(state: MegatronShard) -> float:
    """Which share of a state's bytes others can map, of storages that are not too small."""
    ours = places(state.tensors())[2]
    storages = [tensor.untyped_storage() for tensor in state.tensors()]
    tensors = {each.data_ptr(): each.nbytes() for each in storages if each.nbytes() >= shared_memory.LEAST}
    mapped = [
        nbytes
        for address, nbytes in tensors.items()
        if any(place.address <= address < place.address + place.nbytes for place in ours)
    ]
    return sum(mapped) / sum(tensors.values())


@pytest.mark.parametrize("distributed", [False, True])
def test_others_can_map_state_and_nothing_is_left_of_it(
    worlds: Worlds, distributed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "LEAST", 1 << 11)
    alone, state = worlds.trained(distributed), worlds.trained(distributed)
    wanted = [tensor.clone() for tensor in state.tensors()]
    assert in_memory_file(state) == 0
    show(state)
    assert in_memory_file(state) == 1
    assert all(map(torch.equal, wanted, state.tensors()))
    assert step(state) == step(alone)
    touch(alone, state)
    assert in_memory_file(alone) == 1
    moments = Moments(state, None)
    moments.free(every_layer)
    before = in_memory_file(state)
    moments.allocate(every_layer)
    assert in_memory_file(state) == before == 1
    release(state, None)
    release(alone, None)
    assert os.fstat(places([])[0]).st_blocks == 0


@pytest.mark.parametrize(("distributed", "least", "most"), [(False, 1.1, 1.9), (True, 2.0, 2.0)])
def test_what_a_world_has_for_itself_is_given_back(
    worlds: Worlds, distributed: bool, least: float, most: float
) -> None:
    """``least``, ``most``: of what the worlds hold together, over what one holds."""
    old = worlds.trained(distributed)
    alone = held_bytes(old)
    new = worlds.trained(distributed, old)
    assert least * alone <= held_bytes(old, new) <= most * alone
    release(old, new)
    assert held_bytes(old, new) == held_bytes(new) == alone
    assert np.isfinite(step(new))
    release(new, None)
    assert held_bytes(new) == 0


def test_nothing_keeps_a_world_that_is_over(worlds: Worlds) -> None:
    def threads_after_a_world() -> int:
        state = worlds.trained(distributed=True)
        with_it, over = psutil.Process().num_threads(), weakref.ref(state)
        worlds.destroy()
        release(state, None)
        del state
        reclaim()
        assert over() is None
        assert psutil.Process().num_threads() < with_it
        return psutil.Process().num_threads()

    # The first has torch start threads that stay, and finds some of tests before it that are about to end.
    _, second, third, fourth = (threads_after_a_world() for _ in range(4))
    assert second >= third >= fourth
