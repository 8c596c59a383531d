"""The memory agreement: all workers take the least that any of them has room for, or none does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch.distributed as dist
from tiny_engine import LAYERS, TinyEngine, job, tiny_spec

from liver_slurm.base.errors import NoRoom
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.messages import Prepare
from liver_slurm.reshard.memory_budget import ALL, NO_ROOM, Share, footprint
from liver_slurm.worker.memory_agreement import CardMemory, HostMemory, MemoryAgreement, agree_on_memory, fits_flat

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
    limits: dict[str, int | None],
    message: Prepare = MESSAGE,
    cards: dict[str, CardMemory] | None = None,
    mode: Literal["overlap", "flat"] = "overlap",
) -> dict[str, MemoryAgreement | NoRoom]:
    """All workers at once, each with its limit, or its card; a is in the live world."""
    store = dist.HashStore()

    def one(worker: str) -> MemoryAgreement | NoRoom:
        config = job()
        config = replace(
            config,
            train=replace(config.train, distributed_optimizer=True),  # so that the worlds share no storage
            stream=replace(config.stream, staging_bytes=STAGING, memory_limit=limits[worker], mode=mode),
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


ALONE = footprint(None, Share(tiny_spec(), 2, 0, True), STAGING).peak(ALL)
"""What a joiner takes of its card."""
NEVER = 1 << 50


def test_where_a_card_has_no_room_for_two_worlds_the_change_is_flat() -> None:
    takes = footprint(Share(tiny_spec(), 1, 0, True), Share(tiny_spec(), 2, 0, True), STAGING)
    assert takes.peak(0) > ALONE, "else the old world would leave room enough"
    cards = {"a": CardMemory((2 << 30) + takes.peak(0) - 1, 0), "b": CardMemory(1 << 40, 0)}
    assert agree({"a": None, "b": None}, cards=cards) == dict.fromkeys("ab", MemoryAgreement(flat=True))


def test_a_card_without_room_for_the_new_world_alone() -> None:
    cards = {"a": CardMemory((2 << 30) + ALONE - 1, 0), "b": CardMemory(1 << 40, 0)}
    found = agree({"a": None, "b": None}, cards=cards)
    assert {str(error) for error in found.values()} == {str(found["b"])}
    assert f"no room for tp1pp1dp2 on a: {ALONE} bytes are needed at least" in str(found["a"])


@pytest.mark.parametrize("limits", [{"a": None, "b": None}, {"a": ALONE, "b": ALONE}])
def test_mode_flat_asks_for_no_more_than_the_new_world(limits: dict[str, int | None]) -> None:
    assert agree(limits, mode="flat") == dict.fromkeys("ab", MemoryAgreement(flat=True))


def test_mode_flat_keeps_within_the_limit() -> None:
    found = agree({"a": ALONE, "b": 100}, mode="flat")
    assert "no room for tp1pp1dp2 on b: " in str(found["a"])


def test_a_host_without_room_for_the_images() -> None:
    share = Share(tiny_spec(), 2, 0, True)
    assert fits_flat(share, STAGING, NEVER, "a", HostMemory(free=100, asked=100))[0] == ALL
    value, reason = fits_flat(share, STAGING, NEVER, "a", HostMemory(free=99, asked=100))
    assert value == NO_ROOM
    assert reason == "100 bytes are needed in its host's memory, which has 99 left"
    assert fits_flat(None, STAGING, NEVER, "a", HostMemory(free=0, asked=0))[0] == ALL


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
