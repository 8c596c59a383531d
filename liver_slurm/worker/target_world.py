"""Preparing a target world beside the running one: groups, model, plan. Nothing that the live world uses is touched."""

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
from liver_slurm.engine.megatron.checkpoint import load_checkpoint
from liver_slurm.engine.megatron.initial import initialise
from liver_slurm.engine.megatron.rank_state import RankState, build_rank_state
from liver_slurm.engine.megatron.sharing import share_storage
from liver_slurm.engine.megatron.spec import shard_spec_of
from liver_slurm.engine.megatron.storage import Moments, held_bytes, reclaim, touch
from liver_slurm.parallel.groups import Membership, build_world
from liver_slurm.protocol.messages import Prepare
from liver_slurm.reshard.plan import TransferPlan, plan_transfer
from liver_slurm.reshard.shard_spec import WorldSpec
from liver_slurm.reshard.spec_exchange import learn, publish
from liver_slurm.transfer.blocking_transfer import BlockingTransfer
from liver_slurm.transfer.layerwise import LayerwiseTransfer
from liver_slurm.transfer.live_transfer import LiveTransfer
from liver_slurm.transfer.transports.select import open_transport
from liver_slurm.worker.memory_agreement import MemoryAgreement, agree_on_memory
from liver_slurm.worker.state_transfer import TransferBuilder, TransferEndpoints

_LONGER = 10.0
"""Seconds that a worker waits for its peers beyond job.prepare_timeout: the coordinator, which gives up then, knows who
is late; a worker only knows that somebody is."""

_NO_LIMIT = timedelta(days=30)


@dataclass
class TargetWorld:
    """What this worker has built for one generation; handed from the thread that prepares to the training thread."""

    membership: Membership
    state: RankState | None = None
    """None for a worker that is no member."""
    transfer: BlockingTransfer | LiveTransfer | None = None
    """None for a world without a source; which of the two it is, stream.mode says."""
    plan_seconds: float = 0.0
    late: LayerwiseTransfer | None = None
    """Layers that had no room beside the live world; None: there is none."""
    held_bytes: int = 0
    """Of both worlds, while training goes on."""
    state_peak_bytes: int = 0
    """Of both worlds and staging, so far: see :meth:`holds`."""
    leaves_from: int = -1
    """Step from which on state may leave while training runs; -1: not known."""
    rate: float = 0.0
    """Bytes a second at which a probe arrived from the workers that will send; 0.0: none will, or mode pause."""
    _phase: Literal["preparing", "prepared", "streaming"] = "preparing"
    _given_up: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def given_up(self) -> bool:
        """Nobody will enter it."""
        return self._given_up

    @property
    def no_way_back(self) -> bool:
        """State of the old world has been freed to make room for late layers."""
        return self.late is not None and self.late.freed

    def holds(self, nbytes: int) -> None:
        """So many bytes of state and staging are held now, or were."""
        self.state_peak_bytes = max(self.state_peak_bytes, nbytes)

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
        if self._phase == "streaming":
            if self.transfer is not None:
                self.transfer.abort()
            if self.state is not None and first:
                self.state.world.abort()  # the training thread may be in its first forward pass
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
        self.late = None
        if self.state is not None:
            self.state.world.destroy()
            self.state = None


def prepare(
    target: TargetWorld,
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
    reclaim()  # now that memory is needed
    timeout = timedelta(seconds=config.job.prepare_timeout + _LONGER)
    store = dist.TCPStore(message.store_host, message.store_port, is_master=False, timeout=timeout)
    backend = "nccl" if device.type == "cuda" else "gloo"
    room = MemoryAgreement()
    if message.source_generation >= 0:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        room = agree_on_memory(message, worker, config, live, store)
    if worker in message.members:
        world = build_world(target.membership, worker, store, backend, device, timeout)
        fresh = message.source_generation < 0
        target.state = build_rank_state(
            config, world, device, (lambda module: initialise(module, config)) if fresh else None, moments=fresh
        )
        if fresh and message.checkpoint:
            load_checkpoint(target.state, Path(message.checkpoint))
    if message.source_generation >= 0:
        target.holds(held_bytes(live, target.state))
        if live is not None and target.state is not None:
            share_storage(live, target.state)
        Moments(target.state, live).allocate(room.early_layer)
        if target.state is not None:
            touch(target.state, live)
        target.held_bytes = held_bytes(live, target.state)
        target.holds(target.held_bytes)
        ends = TransferEndpoints(message, worker, live, target.membership, target.state)
        begun = time.perf_counter()
        plan = _plan(ends, config, store)
        target.plan_seconds = time.perf_counter() - begun
        overlap = config.stream.mode == "overlap"
        transport = open_transport(
            store,
            f"generation{message.generation}/transfer",
            len(ends.peers.names),
            ends.me,
            config.stream,
            device,
            # Beside training a message may be waited for as long as steps take; the coordinator's word ends it.
            _NO_LIMIT if overlap else timeout,
            beside_training=overlap,
        )
        begun = time.perf_counter()
        mover = TransferBuilder(ends, plan, config, transport, room)
        target.transfer, target.late = mover.overlap(device) if overlap else mover.transfer()
        target.plan_seconds += time.perf_counter() - begun
        if isinstance(target.transfer, LiveTransfer):
            target.rate = target.transfer.probe()


def _plan(ends: TransferEndpoints, config: JobConfig, store: Any) -> TransferPlan:
    """Learn from the store what every rank of both worlds holds, and plan."""
    scope = dist.PrefixStore(f"generation{ends.generation}/spec/", store)
    for side, state in (("source", ends.old), ("target", ends.new)):
        if state is not None:
            publish(scope, side, state.world.layout, state.world.rank, shard_spec_of(state.model))
    distributed, precision = config.train.distributed_optimizer, config.train.precision
    derived = config.stream.mode == "overlap"
    source, target = (
        WorldSpec(membership.layout, learn(scope, side), distributed, precision, derived=derived)
        for side, membership in (("source", ends.source), ("target", ends.target))
    )
    return plan_transfer(source, target, ends.peers.keep, ends.places)
