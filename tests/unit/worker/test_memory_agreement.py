"""The memory agreement: all workers take the least that any of them has room for, or none does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from tiny_engine import LAYERS, TinyEngine, job, tiny_spec

from liver_slurm.base.errors import NoRoom
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.messages import Prepare
from liver_slurm.reshard.memory_budget import ALL, Share, footprint
from liver_slurm.worker.memory_agreement import CardMemory, MemoryAgreement, agree_on_memory

PATIENCE = 90.0
MESSAGE = Prepare(
    epoch=0,
    generation=4,
    layout="tp1pp1dp2",
    members=["a", "b"],
    source_generation=3,
    source_layout="tp1pp1dp1",
    source_members=["a"],
    store_host="h",
    store_port=1,
)
STAGING = 64


def live() -> Any:
    """A shard of the live world, as far as the agreement asks for it."""
    return SimpleNamespace(spec=tiny_spec(), world=SimpleNamespace(layout=Layout(1, 1, 1), rank=0))


def agree(
    limits: dict[str, int | None], message: Prepare = MESSAGE, cards: dict[str, CardMemory] | None = None
) -> dict[str, MemoryAgreement | NoRoom]:
    """All workers at once, each with its limit, or its card; a is in the live world."""
    store = dist.HashStore()

    def one(worker: str) -> MemoryAgreement | NoRoom:
        config = job()
        config = replace(
            config,
            train=replace(config.train, distributed_optimizer=True),  # so that the worlds share no storage
            stream=replace(config.stream, staging_bytes=STAGING, memory_limit=limits[worker]),
        )
        shard = live() if worker in message.source_members else None
        try:
            return agree_on_memory(message, worker, config, TinyEngine(), shard, store, (cards or {}).get(worker))
        except NoRoom as error:
            return error

    with ThreadPoolExecutor(len(limits)) as pool:
        futures = {worker: pool.submit(one, worker) for worker in limits}
        return {worker: future.result(PATIENCE) for worker, future in futures.items()}


def test_without_a_limit_nobody_is_asked() -> None:
    assert agree({"a": None}) == {"a": MemoryAgreement()}


def test_with_room_for_all_every_layer_is_early() -> None:
    for agreed in agree({"a": 1 << 20, "b": 1 << 20}).values():
        assert isinstance(agreed, MemoryAgreement)
        assert agreed.early == ALL
        assert agreed.gradients is not None


@pytest.mark.parametrize("early", range(1, LAYERS + 1))
def test_the_least_of_all_workers_counts(early: int) -> None:
    """Worker a holds both worlds, so it has less room than b, which joins."""
    takes = footprint(Share(tiny_spec(), 1, 0, True), Share(tiny_spec(), 2, 0, True), STAGING)
    assert takes.peak(early) < takes.peak(early + 1)
    limit = takes.peak(early + 1) - 1
    agreed = agree({"a": limit, "b": 1 << 20})
    assert agreed["a"] == MemoryAgreement(early, limit - takes.beside_training(early))
    assert isinstance(agreed["b"], MemoryAgreement)
    assert agreed["b"].early == early


def test_early_layers() -> None:
    agreement = MemoryAgreement(early=2)
    assert [layer for layer in range(-1, LAYERS) if agreement.early_layer(layer)] == [-1, 0]
    assert not any(MemoryAgreement(early=0).early_layer(layer) for layer in range(-1, LAYERS))
    assert all(MemoryAgreement().early_layer(layer) for layer in range(-1, LAYERS))


def test_no_room_on_one_worker_is_said_by_all() -> None:
    found = agree({"a": 1 << 20, "b": 100})
    assert {str(error) for error in found.values()} == {str(found["b"])}
    assert "no room for tp1pp1dp2 on b: " in str(found["b"])
    assert "stream.memory_limit allows 100" in str(found["b"])


def test_by_default_a_card_gives_what_training_leaves() -> None:
    takes = footprint(Share(tiny_spec(), 1, 0, True), Share(tiny_spec(), 2, 0, True), STAGING)
    training = 10 << 20
    beside = int(1.1 * training) + (2 << 30)  # what is kept for the new world's training, as much as the old one's took
    roomy = beside + takes.peak(LAYERS + 1)
    for usable, early in ((roomy, ALL), (roomy - 1, LAYERS)):
        # The joiner has never trained, and has room for all but what training will take.
        cards = {"a": CardMemory(usable, training), "b": CardMemory(usable, 0)}
        agreed = agree({"a": None, "b": None}, cards=cards)
        assert [one.early for one in agreed.values() if isinstance(one, MemoryAgreement)] == [early, early]
    found = agree({"a": None, "b": None}, cards={name: CardMemory(beside + 10, training) for name in "ab"})
    assert {"its card's memory beside training allows 10" in str(error) for error in found.values()} == {True}
