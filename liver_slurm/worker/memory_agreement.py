"""How much of a target world gets storage beside the live one: agreed on by all workers, before it is built."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import msgspec
import torch.distributed as dist

from liver_slurm.base.errors import NoRoom
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.megatron.rank_state import RankState
from liver_slurm.engine.megatron.spec import shard_spec, shard_spec_of
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.messages import Prepare
from liver_slurm.reshard.memory_budget import ALL, NO_ROOM, Footprint, Share, choose_early, footprint, gradient_room

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryAgreement:
    """What of a target world has storage while training goes on."""

    early: int = ALL
    """So many slices: 0 is what is in no layer, ``n`` is layer ``n - 1``."""
    gradients: int | None = None
    """Bytes for staged gradients; None: no limit."""

    def early_layer(self, layer: int) -> bool:
        """Whether a layer, or -1 for what is in none, is early."""
        return layer + 1 < self.early


def agree_on_memory(
    message: Prepare, worker: str, config: JobConfig, live: RankState | None, store: Any
) -> MemoryAgreement:
    """Agree with all workers of both worlds; before anything of the target is built.

    Late layers are late on every worker, for both ends of a move must do it at the same time.

    Raises:
        NoRoom: a worker cannot do it within ``stream.memory_limit``; the same on all.
    """
    limit = config.stream.memory_limit
    if limit is None:
        return MemoryAgreement()
    takes = _footprint(message, worker, config, live)
    early, reason = choose_early(takes, limit)
    scope = dist.PrefixStore(f"generation{message.generation}/room/", store)
    workers = len({*message.source_members, *message.members})
    early, reason = _least(scope, early, f"{worker}: {reason}", workers)
    log.info("generation %d: %s", message.generation, reason)
    if early == NO_ROOM:
        raise NoRoom(f"no room for {message.layout} on {reason}; raise it, or lower stream.staging_bytes")
    return MemoryAgreement(early, gradient_room(takes, early, limit))


def _footprint(message: Prepare, worker: str, config: JobConfig, live: RankState | None) -> Footprint:
    distributed, layout = config.train.distributed_optimizer, Layout.parse(message.layout)
    old = new = None
    if live is not None:
        old = Share(shard_spec_of(live.model), live.world.layout.dp, live.world.place.dp, distributed)
    if worker in message.members:
        tp, pp, dp = layout.coordinates(message.members.index(worker))
        new = Share(shard_spec(config, layout, tp, pp), layout.dp, dp, distributed)
    return footprint(old, new, config.stream.staging_bytes)


def _least(scope: Any, value: int, reason: str, workers: int) -> tuple[int, str]:
    """The least of all workers' values, with its reason; waits for all."""
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
