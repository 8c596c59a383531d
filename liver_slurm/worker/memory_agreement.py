"""Memory agreement: before a target world is built, all workers agree on what gets storage beside the live one.

A layer that has no room is *late*: it moves during the pause, once the old world's layers make room. Late layers are
late on every worker, because both ends of a move must do it at the same time. Where that is not enough on some card,
the change is *flat* on every worker: all of the target's state waits in host memory until the old world is gone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import torch
import torch.distributed as dist

from liver_slurm.base.errors import NoRoom
from liver_slurm.base.host_memory import available_memory
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Engine, TrainingShard
from liver_slurm.engine.storage import held_bytes
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.messages import Prepare
from liver_slurm.reshard.memory_budget import (
    ALL,
    NO_ROOM,
    Share,
    choose_early,
    footprint,
    gradient_room,
    image_bytes,
)
from liver_slurm.reshard.shard_spec import ShardSpec
from liver_slurm.reshard.tensors import moment_dtype_of
from liver_slurm.transfer.connections import machine

_RESERVE, _SPARE = 1.1, 2 << 30
"""Of what training takes beside its state, and bytes besides: the allocator's blocks do not fit without gaps."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryAgreement:
    """Layers of a target world that have storage while training goes on."""

    early: int = ALL
    """Number of early slices: slice 0 is what belongs to no layer, slice ``n`` is layer ``n - 1``."""
    gradients: int | None = None
    """Bytes for staged gradients on this worker; None: no limit."""
    flat: bool = False
    """The target world is built when the old one is gone, and its state waits in host memory."""

    def early_layer(self, layer: int) -> bool:
        """Return whether a layer is early; -1 stands for what belongs to no layer."""
        return layer + 1 < self.early


class CardMemory(NamedTuple):
    """Memory of a worker's card, in bytes."""

    usable: int
    """What this process has or can have."""
    training: int
    """What training has taken beside its state, at most; 0 on a worker that is in no world."""


def measure_card(device: torch.device, live: TrainingShard | None) -> CardMemory:
    """Measure the memory of a worker's card; the peak is that since :func:`forget_peak`."""
    free, _ = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device) - held_bytes(live) if live is not None else 0
    return CardMemory(free + torch.cuda.memory_reserved(device), max(peak, 0))


def forget_peak(device: torch.device) -> None:
    """Begin to measure training's peak again: nothing but one world is on the card."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def agree_on_memory(
    message: Prepare,
    worker: str,
    config: JobConfig,
    engine: Engine,
    live: TrainingShard | None,
    store: Any,
    card: CardMemory | None = None,
    spare: int = 0,
) -> MemoryAgreement:
    """Agree with all workers of both worlds through the store; blocks until all have come.

    Args:
        live: this worker's shard of the live world; None: it is in none.
        card: of this worker; None: its state lies in host memory, which has no limit by default.
        spare: bytes of host memory that this worker keeps and nobody uses.

    Raises:
        NoRoom: a worker cannot do it within ``stream.memory_limit``, on its card, or with its host's memory; raised on
            all workers alike.
    """
    # What a loop of the user's own will hold is not known before it is built.
    flat = config.stream.mode == "flat"
    if (config.stream.memory_limit is None and card is None and not flat) or config.train.loop is not None:
        return MemoryAgreement()
    scope = dist.PrefixStore(f"generation{message.generation}/room/", store)
    old, new = _shares(message, worker, config, engine, live)
    limit, whose = _limit(scope, message, worker, config, card)
    workers = len({*_left(message), *message.members})
    if not flat:
        mine = footprint(old, new, config.stream.staging_bytes)
        early, reason = choose_early(mine, limit, whose)
        early, reason = _least(dist.PrefixStore("beside/", scope), early, f"{worker}: {reason}", workers)
        log.info("generation %d: %s", message.generation, reason)
        if early != NO_ROOM:
            return MemoryAgreement(early, gradient_room(mine, early, limit))
        if card is None:  # host memory is where state is already
            raise _no_room(message, reason)
    host = _host_memory(scope, new, spare, workers)
    fits, reason = fits_flat(new, config.stream.staging_bytes, limit, whose, host)
    fits, reason = _least(dist.PrefixStore("flat/", scope), fits, f"{worker}: {reason}", workers)
    log.info("generation %d: %s", message.generation, reason)
    if fits == NO_ROOM:
        raise _no_room(message, reason)
    return MemoryAgreement(flat=True)


def _no_room(message: Prepare, reason: str) -> NoRoom:
    return NoRoom(f"no room for {message.layout} on {reason}; raise stream.memory_limit, or lower stream.staging_bytes")


class HostMemory(NamedTuple):
    """Memory of a worker's host, in bytes."""

    free: int
    """What all workers there may still have, with what they keep for this."""
    asked: int
    """What they need of it for images of the target world."""


def fits_flat(new: Share | None, staging: int, limit: int, whose: str, host: HostMemory) -> tuple[int, str]:
    """Return whether a worker has room for its share of a target world without the old one.

    Args:
        new: None: it is no member.
        limit: bytes that state and staging may take.
        whose: what sets it, for the reason.

    Returns:
        :data:`ALL`, or :data:`NO_ROOM`; and the reason.
    """
    alone = footprint(None, new, staging).peak(ALL)
    if alone > limit:
        return NO_ROOM, f"{alone} bytes are needed at least, and {whose} allows {limit}"
    if host.asked > host.free:
        return NO_ROOM, f"{host.asked} bytes are needed in its host's memory, which has {host.free} left"
    return ALL, f"the new world's state waits in {host.asked} bytes of its host's memory, which has {host.free} left"


def _host_memory(scope: Any, new: Share | None, spare: int, workers: int) -> HostMemory:
    """Return the memory of this worker's host, and what all workers there ask of it; waits until all have come."""
    where = machine()
    scope.add(f"spare/{where}", spare)
    scope.add(f"asked/{where}", image_bytes(new) if new is not None else 0)
    if scope.add("asking", 1) == workers:
        scope.set("all have asked", "")
    scope.wait(["all have asked"])
    return HostMemory(available_memory() + scope.add(f"spare/{where}", 0), scope.add(f"asked/{where}", 0))


def _limit(scope: Any, message: Prepare, worker: str, config: JobConfig, card: CardMemory | None) -> tuple[int, str]:
    """Return the bytes that state and staging may take on this worker, and what says so.

    By default what its card has beside training, which is taken to need as much in the new world as it has in the old
    one, so that preparing can never be what training runs out of memory for.
    """
    if config.stream.memory_limit is not None:
        return config.stream.memory_limit, "stream.memory_limit"
    if card is None:
        return available_memory(), "its host's memory"
    if worker in message.source_members:
        scope.set(f"training/{worker}", str(card.training))
    training = max(int(scope.get(f"training/{member}")) for member in _left(message))
    return card.usable - int(training * _RESERVE) - _SPARE, "its card's memory beside training"


def _left(message: Prepare) -> list[str]:
    """Return the members of the live world that are not lost."""
    return [member for member in message.source_members if member not in message.lost]


def _shares(
    message: Prepare, worker: str, config: JobConfig, engine: Engine, live: TrainingShard | None
) -> tuple[Share | None, Share | None]:
    """Return this worker's shares of the live world and of the target; None: it is no member."""
    distributed, layout = config.train.distributed_optimizer, Layout.parse(message.layout)
    old, new, dtype = None, None, moment_dtype_of(config.train)

    def share(shard: ShardSpec, layout: Layout, rank: int) -> Share:
        bucket = engine.gradient_bucket(config, layout) if layout.coordinate("pp", rank) == 0 else None
        return Share(shard, layout.replicas, layout.replica(rank), distributed, bucket, dtype)

    if live is not None:
        old = share(live.spec, live.world.layout, live.world.rank)
    if worker in message.members:
        rank = message.members.index(worker)
        new = share(engine.shard_spec(config, layout, rank), layout, rank)
    return old, new


def _least(scope: Any, value: int, reason: str, workers: int) -> tuple[int, str]:
    """Return the least value of all workers, with its reason; waits until all have come."""
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
