"""What ranks tell each other about their shards."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from small_models import Model

from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.spec_exchange import learn, publish, unpack


class Memory:
    """A store of one process that counts reads."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.reads = 0
        self._changed = threading.Condition()

    def set(self, key: str, value: Any) -> None:
        with self._changed:
            assert key not in self.values, f"{key} is written twice"
            self.values[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> bytes:
        with self._changed:
            assert self._changed.wait_for(lambda: key in self.values, timeout=60), f"{key} never came"
            self.reads += 1
            return self.values[key]


@pytest.mark.parametrize("tied", [True, False])
def test_all_ranks_learn_all_shards_with_one_read_each(tied: bool) -> None:
    """Workers change ranks between the worlds, and rank 0 of each is another one."""
    model = Model(4, tied, "bfloat16", True)
    worlds = {"source": model.world(Layout(2, 2, 2), True), "target": model.world(Layout(1, 4, 2), True)}
    store = Memory()

    def work(worker: int) -> dict[str, Any]:
        for side, rank in (("source", worker), ("target", 7 - worker)):
            layout = worlds[side].layout
            place = layout.coordinates(rank)
            publish(store, side, layout, {rank: worlds[side].shards[place.tp, place.pp]})
        return {side: learn(store, side) for side in worlds}

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert found == [{side: world.shards for side, world in worlds.items()}] * 8
    shards = 4 + 4
    assert store.reads == 8 * 2 + shards


def test_survivors_speak_for_the_lost() -> None:
    layout, store = Layout(2, 1, 2), Memory()
    world = Model(4, True, "bfloat16", True).world(layout, False)
    for rank in (3, 2):
        place = layout.coordinates(rank)
        publish(store, "source", layout, {rank: world.shards[place.tp, place.pp]}, frozenset({0, 1}))
        if rank == 3:
            assert "source/all" not in store.values
    assert learn(store, "source") == world.shards


def test_a_large_world_is_a_small_object() -> None:
    model = Model(128, False, "bfloat16", False, scale=64)
    layout = Layout(8, 16, 1)
    world = model.world(layout, True)
    store = Memory()
    for rank in range(layout.size - 1, -1, -1):
        place = layout.coordinates(rank)
        publish(store, "target", layout, {rank: world.shards[place.tp, place.pp]})
    packed = store.get("target/all")
    assert unpack(packed) == world.shards
    assert len(packed) < 100_000
