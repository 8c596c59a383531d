"""The memory of a world that is over, and what else it leaves behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.megatron.groups import make_live
from liver_slurm.megatron.initial import initialise
from liver_slurm.megatron.rank_state import RankState, build_rank_state
from liver_slurm.megatron.sharing import share_storage
from liver_slurm.megatron.step import train_step
from liver_slurm.megatron.storage import held_bytes, release
from liver_slurm.state.layout import Layout
from liver_slurm.world.c10d import set_default_group
from liver_slurm.world.world import Membership, World, build_world

CPU = torch.device("cpu")


class Zeros:
    """Samples of nothing."""

    def __len__(self) -> int:
        return 1

    def batch(self, first: int, count: int) -> np.ndarray:
        return np.zeros((count, 9), dtype=np.int64)


class Worlds:
    """Makes worlds of one."""

    def __init__(self) -> None:
        self._made: list[World] = []

    def trained(self, distributed: bool, old: RankState | None = None) -> RankState:
        """A world that has trained a step; with ``old``'s storage where it may share it."""
        config = JobConfig(
            model=ModelSection(
                num_layers=2,
                hidden_size=16,
                num_attention_heads=2,
                num_query_groups=2,
                ffn_hidden_size=32,
                vocab_size=64,
            ),
            train=TrainSection(
                steps=9, seq_length=8, micro_batch_size=1, global_batch_size=1, distributed_optimizer=distributed
            ),
        )
        me = Membership(len(self._made), Layout(1, 1, 1), ("me",))
        world = build_world(me, "me", dist.HashStore(), "gloo", CPU, timedelta(minutes=1))
        self._made.append(world)
        state = build_rank_state(config, world, CPU, lambda module: initialise(module, config))
        if old is not None:
            share_storage(old, state)
        step(state)
        return state

    def destroy(self) -> None:
        set_default_group(None)
        for world in self._made:
            world.destroy()


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worlds]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    made = Worlds()
    yield made
    made.destroy()


def step(state: RankState) -> float:
    make_live(state.world, 1)
    return train_step(state, Zeros(), 0).loss


@pytest.mark.parametrize("distributed", [False, True])
def test_what_a_world_has_for_itself_is_given_back(worlds: Worlds, distributed: bool) -> None:
    old = worlds.trained(distributed)
    alone = held_bytes(old)
    new = worlds.trained(distributed, old)
    both = held_bytes(old, new)
    assert both == 2 * alone if distributed else alone < both < 2 * alone
    release(old, new)
    assert held_bytes(old, new) == held_bytes(new) == alone
    assert np.isfinite(step(new))
    release(new, None)
    assert held_bytes(new) == 0


def test_nothing_keeps_a_world_that_is_over(worlds: Worlds) -> None:
    gc.collect()
    threads = psutil.Process().num_threads()
    state = worlds.trained(distributed=True)
    assert psutil.Process().num_threads() > threads
    over = weakref.ref(state)
    worlds.destroy()
    release(state, None)
    del state
    gc.collect()
    assert over() is None
    assert psutil.Process().num_threads() == threads
