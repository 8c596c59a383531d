"""How a world's ranks learn what all of them hold: shards are put into a shared store, and read as one object.

With a read of its own for every shard, 16,384 ranks of 128 shards would ask a store two million times. So each shard is
written once, by its first replica; the first rank gathers them and writes them together, packed to a few tens of KiB;
everybody reads that.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from liver_slurm.parallel.layout import Layout, ShardKey
from liver_slurm.reshard.shard_spec import ShardSpec

Shards = dict[ShardKey, ShardSpec]

_PLACES = list[tuple[int, int, ShardSpec]]


class Store(Protocol):
    """What is needed of a store, such as torch's: ``get`` waits until the key is there."""

    def set(self, key: str, value: Any) -> None:
        """Write."""

    def get(self, key: str) -> bytes:
        """Read, and wait for it."""


def publish(
    store: Store, side: str, layout: Layout, held: Mapping[int, ShardSpec], lost: frozenset[int] = frozenset()
) -> None:
    """Tell the others what the caller holds; for every rank of the world that is not lost, somebody must call this.

    The first of them waits for the first replicas of all shards. Who publishes in two worlds may do so one after the
    other, in any order that is the same for all.

    Args:
        store: shared by the ranks of both worlds; without leftovers of other worlds.
        side: names the world in the store.
        layout: of the world.
        held: what the models of the caller's ranks hold: its own rank, and those that it stands in for.
        lost: ranks that are gone; each shard must have a replica that is not.
    """
    for rank, shard in held.items():
        if rank == _first(layout.shard_replicas(rank), lost):
            part, pp = layout.shard_key(rank)
            store.set(f"{side}/{part}/{pp}", pack({(part, pp): shard}))
    if _first(range(layout.size), lost) in held:
        shards: Shards = {}
        for part, pp in layout.shards():
            shards |= unpack(store.get(f"{side}/{part}/{pp}"))
        store.set(f"{side}/all", pack(shards))


def _first(ranks: Iterable[int], lost: frozenset[int]) -> int:
    """Return the first of some ranks that is left."""
    return next(rank for rank in ranks if rank not in lost)


def learn(store: Store, side: str) -> Shards:
    """Return every shard of a world; waits until all are published."""
    return unpack(store.get(f"{side}/all"))


def pack(shards: Mapping[ShardKey, ShardSpec]) -> bytes:
    """Return the shards as one object; neighbours differ in little but their offsets, which is what makes it small."""
    return zlib.compress(msgspec.msgpack.encode([(*place, shard) for place, shard in shards.items()]))


def unpack(packed: bytes) -> Shards:
    """Undo :func:`pack`."""
    found = msgspec.msgpack.decode(zlib.decompress(packed), type=_PLACES)
    return {(part, pp): shard for part, pp, shard in found}
