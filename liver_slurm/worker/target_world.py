"""The target world of one worker: build it beside the live world, hand it to the training thread, or discard it.

Process groups, model, transfer plan and transfer are built in a thread of their own; nothing that the live world uses
is touched.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Engine, TrainingShard
from liver_slurm.engine.checkpoint import load_checkpoint
from liver_slurm.engine.storage import Moments, held_bytes, reclaim, touch
from liver_slurm.parallel.groups import build_world
from liver_slurm.parallel.membership import Membership
from liver_slurm.protocol.messages import Prepare
from liver_slurm.reshard.plan import TransferPlan, plan_transfer
from liver_slurm.reshard.shard_spec import WorldSpec
from liver_slurm.reshard.spec_exchange import learn, publish
from liver_slurm.transfer.blocking_transfer import BlockingTransfer
from liver_slurm.transfer.layerwise import LayerwiseTransfer
from liver_slurm.transfer.live_transfer import LiveTransfer
from liver_slurm.transfer.one_sided.connect import Opening
from liver_slurm.worker.memory_agreement import MemoryAgreement, agree_on_memory, forget_peak, measure_card
from liver_slurm.worker.state_transfer import TransferBuilder, TransferEndpoints

_GRACE = 10.0
"""Seconds that a worker waits for its peers beyond job.prepare_timeout. The coordinator, which gives up at that time,
knows which worker is late; a worker only knows that one is."""

_NO_LIMIT = timedelta(days=30)


@dataclass
class TargetWorld:
    """What this worker has built for one generation; handed from the thread that prepares to the training thread."""

    membership: Membership
    state: TrainingShard | None = None
    """This worker's shard; None for a worker that is no member."""
    transfer: BlockingTransfer | LiveTransfer | None = None
    """Moves the early layers, in the way of stream.mode; None for a world without a source."""
    plan_seconds: float = 0.0
    late: LayerwiseTransfer | None = None
    """Moves the layers that had no room beside the live world; None: there are none."""
    held_bytes: int = 0
    """State of both worlds while training goes on."""
    state_peak_bytes: int = 0
    """Peak of the state of both worlds and staging so far; see :meth:`holds`."""
    leaves_from: int = -1
    """Step from which on state may leave while training runs; -1: not known."""
    cutover_step: int = -1
    """Steps that are completed at the cutover; -1: not known."""
    rate: float = 0.0
    """Bytes a second at which a probe arrived from the workers that will send; 0.0: none will, or mode pause."""
    _phase: Literal["preparing", "prepared", "streaming"] = "preparing"
    _given_up: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def given_up(self) -> bool:
        """No worker will enter it."""
        return self._given_up

    @property
    def no_way_back(self) -> bool:
        """State of the old world has been freed to make room for late layers."""
        return self.late is not None and self.late.freed

    def holds(self, nbytes: int) -> None:
        """Record that state and staging take ``nbytes`` now, or took them a moment ago."""
        self.state_peak_bytes = max(self.state_peak_bytes, nbytes)

    def prepared(self) -> bool:
        """Mark it as built; False: it has been given up meanwhile, and is discarded."""
        with self._lock:
            if not self._given_up:
                self._phase = "prepared"
                return True
        self.discard()
        return False

    def stream(self) -> bool:
        """Hand it to the training thread, which calls this; False: it has been given up."""
        with self._lock:
            if self._given_up:
                return False
            self._phase = "streaming"
            return True

    def give_up(self) -> bool:
        """Give it up, from any thread; returns whether the training thread waits for the verdict on it."""
        with self._lock:
            first, self._given_up = not self._given_up, True
        if self._phase == "streaming":
            if self.transfer is not None:
                self.transfer.abort()
            if self.state is not None and first:
                self.state.world.abort()  # the training thread may be in its first forward pass
        elif self._phase == "prepared" and first:
            threading.Thread(target=self.discard, name="discard", daemon=True).start()
        return self._phase == "streaming"

    def close_transfer(self) -> None:
        """Close the transfer's connections."""
        if self.transfer is not None:
            self.transfer.close()
            self.transfer = None

    def discard(self) -> None:
        """Free everything that was built."""
        self.close_transfer()
        self.late = None
        if self.state is not None:
            self.state.world.destroy()
            self.state = None


@dataclass(frozen=True)
class Preparation:
    """What building a target world starts from."""

    message: Prepare
    worker: str
    config: JobConfig
    engine: Engine
    live: TrainingShard | None
    """The worker's shard of the live world; None: it is in none."""
    device: torch.device

    @property
    def timeout(self) -> timedelta:
        """How long peers are waited for."""
        return timedelta(seconds=self.config.job.prepare_timeout + _GRACE)


def prepare(target: TargetWorld, preparation: Preparation) -> None:
    """Build ``target``; blocks until all other members do the same.

    Raises:
        RuntimeError, LiverError: it cannot be built.
    """
    message, config, device = preparation.message, preparation.config, preparation.device
    reclaim()  # now that memory is needed
    store = dist.TCPStore(message.store_host, message.store_port, is_master=False, timeout=preparation.timeout)
    has_source = message.source_generation >= 0
    memory = MemoryAgreement()
    if has_source:
        card = measure_card(device, preparation.live) if device.type == "cuda" else None
        forget_peak(device)
        memory = agree_on_memory(message, preparation.worker, config, preparation.engine, preparation.live, store, card)
    if preparation.worker in message.members:
        _build(target, preparation, store)
    if has_source:
        _allocate(target, preparation.live, memory)
        _connect(target, preparation, memory, store)


def _build(target: TargetWorld, preparation: Preparation, store: Any) -> None:
    """Build the process groups and this worker's shard; without a source world, with the values to start from."""
    message, config, device = preparation.message, preparation.config, preparation.device
    backend = "nccl" if device.type == "cuda" else "gloo"
    world = build_world(target.membership, preparation.worker, store, backend, device, preparation.timeout)
    fresh = message.source_generation < 0
    target.state = preparation.engine.build(config, world, device, fresh=fresh)
    if fresh and message.checkpoint:
        load_checkpoint(target.state, Path(message.checkpoint))


def _allocate(target: TargetWorld, live: TrainingShard | None, memory: MemoryAgreement) -> None:
    """Give the shard storage for its early layers, where it cannot share the live world's."""
    target.holds(held_bytes(live, target.state))
    if live is not None and target.state is not None:
        target.state.share_storage(live)
    Moments(target.state, live).allocate(memory.early_layer)
    if target.state is not None:
        touch(target.state, live)
    target.held_bytes = held_bytes(live, target.state)
    target.holds(target.held_bytes)


def _connect(target: TargetWorld, preparation: Preparation, memory: MemoryAgreement, store: Any) -> None:
    """Plan the transfer, connect to the peers, and probe how fast state will arrive."""
    message, config, device = preparation.message, preparation.config, preparation.device
    endpoints = TransferEndpoints(message, preparation.worker, preparation.live, target.membership, target.state)
    begun = time.perf_counter()
    plan = _plan(endpoints, config, preparation.engine, store)
    target.plan_seconds = time.perf_counter() - begun
    overlap = config.stream.mode == "overlap"
    opening = Opening(
        store,
        f"generation{message.generation}/transfer",
        endpoints.me,
        len(endpoints.peers.names),
        config.stream,
        device,
        # Beside training a message may be waited for as long as steps take; the coordinator ends it.
        _NO_LIMIT if overlap else preparation.timeout,
    )
    begun = time.perf_counter()
    builder = TransferBuilder(endpoints, plan, config, memory, opening)
    target.transfer, target.late = builder.live() if overlap else builder.blocking()
    target.plan_seconds += time.perf_counter() - begun
    if isinstance(target.transfer, LiveTransfer):
        target.rate = target.transfer.probe()


def _plan(endpoints: TransferEndpoints, config: JobConfig, engine: Engine, store: Any) -> TransferPlan:
    """Exchange through the store what every rank of both worlds holds, and plan the transfer."""
    scope = dist.PrefixStore(f"generation{endpoints.generation}/spec/", store)
    for side, shard in (("source", endpoints.old), ("target", endpoints.new)):
        if shard is not None:
            publish(scope, side, shard.world.layout, shard.world.rank, shard.spec)
    distributed, precision = config.train.distributed_optimizer, config.train.precision
    derived = config.stream.mode == "overlap"
    source, target = (
        WorldSpec(
            membership.layout,
            learn(scope, side),
            distributed,
            precision,
            engine.gradient_bucket(config, membership.layout),
            derived,
        )
        for side, membership in (("source", endpoints.source), ("target", endpoints.target))
    )
    return plan_transfer(source, target, endpoints.peers.keep, endpoints.places)
