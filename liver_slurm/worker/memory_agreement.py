"""Memory agreement: before a target world is built, all workers agree on which layers get storage beside the live one.

A layer that has no room is *late*: it moves during the pause, once the old world's layers make room. Late layers are
late on every worker, because both ends of a move must do it at the same time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import msgspec
import torch.distributed as dist

from liver_slurm.base.errors import NoRoom
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Engine, TrainingShard
from liver_slurm.parallel.layout import Coordinates, Layout
from liver_slurm.protocol.messages import Prepare
from liver_slurm.reshard.memory_budget import ALL, NO_ROOM, Footprint, Share, choose_early, footprint, gradient_room
from liver_slurm.reshard.shard_spec import ShardSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryAgreement:
    """Layers of a target world that have storage while training goes on."""

    early: int = ALL
    """Number of early slices: slice 0 is what belongs to no layer, slice ``n`` is layer ``n - 1``."""
    gradients: int | None = None
    """Bytes for staged gradients on this worker; None: no limit."""

    def early_layer(self, layer: int) -> bool:
        """Whether a layer is early; -1 stands for what belongs to no layer."""
        return layer + 1 < self.early


def agree_on_memory(
    message: Prepare, worker: str, config: JobConfig, engine: Engine, live: TrainingShard | None, store: Any
) -> MemoryAgreement:
    """Agree with all workers of both worlds through the store; blocks until all have come.

    Args:
        live: this worker's shard of the live world; None: it is in none.

    Raises:
        NoRoom: a worker cannot do it within ``stream.memory_limit``; raised on all workers alike.
    """
    limit = config.stream.memory_limit
    if limit is None:
        return MemoryAgreement()
    mine = _footprint(message, worker, config, engine, live)
    early, reason = choose_early(mine, limit)
    scope = dist.PrefixStore(f"generation{message.generation}/room/", store)
    workers = len({*message.source_members, *message.members})
    early, reason = _least(scope, early, f"{worker}: {reason}", workers)
    log.info("generation %d: %s", message.generation, reason)
    if early == NO_ROOM:
        raise NoRoom(f"no room for {message.layout} on {reason}; raise it, or lower stream.staging_bytes")
    return MemoryAgreement(early, gradient_room(mine, early, limit))


def _footprint(
    message: Prepare, worker: str, config: JobConfig, engine: Engine, live: TrainingShard | None
) -> Footprint:
    """Memory that this worker needs for its shares of both worlds."""
    distributed, layout = config.train.distributed_optimizer, Layout.parse(message.layout)
    old = new = None

    def share(shard: ShardSpec, layout: Layout, place: Coordinates) -> Share:
        bucket = engine.gradient_bucket(config, layout) if place.pp == 0 else None
        return Share(shard, layout.dp, place.dp, distributed, bucket)

    if live is not None:
        old = share(live.spec, live.world.layout, live.world.place)
    if worker in message.members:
        rank = message.members.index(worker)
        new = share(engine.shard_spec(config, layout, rank), layout, layout.coordinates(rank))
    return footprint(old, new, config.stream.staging_bytes)


def _least(scope: Any, value: int, reason: str, workers: int) -> tuple[int, str]:
    """The least value of all workers, with its reason; waits until all have come."""
    mine = msgspec.json.encode((value, reason)).decode()
    known = scope.compare_set("least", "", mine)
    while _value(known)[0] > value:
        known = scope.compare_set("least", known.decode(), mine)
    if scope.add("come", 1) == workers:
        scope.set("complete", "")
    scope.wait(["complete"])
    return _value(scope.get("least"))


def _value(data: bytes) -> tuple[int, str]:
    return msgspec.json.decode(data, type=tuple[int, str])
