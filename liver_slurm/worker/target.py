"""Preparing a target world beside the running one: groups, model, plan. Nothing that the live world uses is touched."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import torch.distributed as dist

from liver_slurm.config.schema import JobConfig
from liver_slurm.control.messages import Prepare
from liver_slurm.megatron.boxes import state_boxes
from liver_slurm.megatron.checkpoint import load_checkpoint
from liver_slurm.megatron.initial import initialise
from liver_slurm.megatron.rank_state import RankState, build_rank_state
from liver_slurm.megatron.spec import shard_spec_of
from liver_slurm.state.layout import Layout
from liver_slurm.state.plan import plan_transfer
from liver_slurm.state.spec import ShardSpec, WorldSpec, pieces
from liver_slurm.stream.transfer import Transfer
from liver_slurm.stream.transport import GroupTransport
from liver_slurm.worker import faultpoints
from liver_slurm.world.world import Membership, World, build_world

_LONGER = 10.0
"""Seconds that a worker waits for its peers beyond job.prepare_timeout: the coordinator, which gives up then, knows who
is late; a worker only knows that somebody is."""


@dataclass
class Target:
    """What this worker has built for one generation; handed from the thread that prepares to the training thread."""

    membership: Membership
    state: RankState | None = None
    """None for a worker that is no member."""
    transfer: Transfer | None = None
    """None for a world without a source."""
    plan_seconds: float = 0.0
    _phase: Literal["preparing", "prepared", "streaming"] = "preparing"
    _given_up: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def prepared(self) -> bool:
        """It is built; False: it has been given up meanwhile, and is discarded."""
        with self._lock:
            if not self._given_up:
                self._phase = "prepared"
                return True
        self.discard()
        return False

    def stream(self) -> bool:
        """The training thread takes it over; False: it has been given up."""
        with self._lock:
            if self._given_up:
                return False
            self._phase = "streaming"
            return True

    def give_up(self) -> bool:
        """Nobody will enter it; from any thread. Whether the training thread waits for the verdict on it."""
        with self._lock:
            first, self._given_up = not self._given_up, True
        if self._phase == "streaming" and self.transfer is not None:
            self.transfer.abort()
        elif self._phase == "prepared" and first:
            threading.Thread(target=self.discard, name="discard", daemon=True).start()
        return self._phase == "streaming"

    def close_transfer(self) -> None:
        """Give the transfer's connections back."""
        if self.transfer is not None:
            self.transfer.close()
            self.transfer = None

    def discard(self) -> None:
        """Free everything."""
        self.close_transfer()
        if self.state is not None:
            self.state.world.destroy()
            self.state = None


def prepare(
    target: Target,
    message: Prepare,
    worker: str,
    config: JobConfig,
    live: RankState | None,
    device: torch.device,
) -> None:
    """Fill ``target``: blocks until all other members do the same.

    Raises:
        RuntimeError, LiverError: it cannot be built.
    """
    timeout = timedelta(seconds=config.job.prepare_timeout + _LONGER)
    store = dist.TCPStore(message.store_host, message.store_port, is_master=False, timeout=timeout)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if worker in message.members:
        world = build_world(target.membership, worker, store, backend, device, timeout)
        fresh = message.source_generation < 0
        target.state = build_rank_state(
            config, world, device, (lambda module: initialise(module, config)) if fresh else None
        )
        if fresh and message.checkpoint:
            load_checkpoint(target.state, Path(message.checkpoint))
    if message.source_generation >= 0:
        _plan(target, message, worker, config, live, store, backend, device, timeout)


def _plan(
    target: Target,
    message: Prepare,
    worker: str,
    config: JobConfig,
    live: RankState | None,
    store: Any,
    backend: str,
    device: torch.device,
    timeout: timedelta,
) -> None:
    """Learn from the store what every rank of both worlds holds, and work out this worker's moves."""
    peers = message.source_members + [member for member in message.members if member not in message.source_members]
    carrier = backend if config.stream.transport == "auto" else config.stream.transport
    transport = GroupTransport(
        store, f"generation{message.generation}/transfer", len(peers), peers.index(worker), carrier, device, timeout
    )
    begun = time.perf_counter()
    scope = dist.PrefixStore(f"generation{message.generation}/spec/", store)
    source = Membership(message.source_generation, Layout.parse(message.source_layout), tuple(message.source_members))
    for side, state in (("source", live), ("target", target.state)):
        if state is not None and state.world.place.dp == 0:
            scope.set(_key(side, state.world), msgspec.json.encode(shard_spec_of(state.model)))
    source_spec = _gather(scope, "source", source.layout, config)
    target_spec = _gather(scope, "target", target.membership.layout, config)
    keep = [source.rank_of(member) for member in target.membership.members]
    plan = plan_transfer(source_spec, target_spec, keep)
    source_rank, target_rank = source.rank_of(worker), target.membership.rank_of(worker)
    target.transfer = Transfer(
        moves=plan.moves_for(source_rank, target_rank),
        tensors=plan.tensors,
        source=_checked(live, source_spec, source_rank),
        target=_checked(target.state, target_spec, target_rank),
        source_peers=[peers.index(member) for member in message.source_members],
        target_peers=[peers.index(member) for member in message.members],
        me=peers.index(worker),
        transport=transport,
        staging_bytes=config.stream.staging_bytes,
        on_received=partial(faultpoints.received, worker),
    )
    target.plan_seconds = time.perf_counter() - begun


def _key(side: str, world: World) -> str:
    return f"{side}/{world.place.tp}/{world.place.pp}"


def _gather(scope: Any, side: str, layout: Layout, config: JobConfig) -> WorldSpec:
    shards = {
        (tp, pp): msgspec.json.decode(scope.get(f"{side}/{tp}/{pp}"), type=ShardSpec)
        for tp in range(layout.tp)
        for pp in range(layout.pp)
    }
    return WorldSpec(layout, shards, config.train.distributed_optimizer, config.train.precision)


def _checked(state: RankState | None, spec: WorldSpec, rank: int | None) -> list[tuple[Any, torch.Tensor]]:
    """The rank's boxes, which must be what the plan takes them to be."""
    if state is None or rank is None:
        return []
    boxes = state_boxes(state)
    if sorted(piece for piece, _ in boxes) != sorted(pieces(spec, rank)):
        raise RuntimeError(
            f"rank {rank} of {spec.layout} holds other pieces than the plan assumes; this model or this version of "
            "megatron-core shards in a way that is not known here"
        )
    return boxes
