"""The target world of one worker: build it beside the live world, hand it to the training thread, or discard it.

Process groups, model, transfer plan and transfer are built in a thread of their own; nothing that the live world uses
is touched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Engine, TrainingShard
from liver_slurm.engine.checkpoint import load_checkpoint, load_start
from liver_slurm.engine.replica import Replica
from liver_slurm.engine.storage import Moments, held_bytes, reclaim, release, show, touch
from liver_slurm.parallel import plain_objects
from liver_slurm.parallel.groups import ProcessGroups, build_world
from liver_slurm.parallel.membership import Membership
from liver_slurm.protocol.messages import Stage
from liver_slurm.reshard.plan import TransferPlan, plan_transfer
from liver_slurm.reshard.shard_spec import WorldSpec
from liver_slurm.reshard.spec_exchange import learn, publish
from liver_slurm.reshard.tensors import moment_dtype_of
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.host_image import HostImage
from liver_slurm.transfer.layerwise import LayerwiseTransfer
from liver_slurm.transfer.one_sided.connect import Opening
from liver_slurm.transfer.transfer import Transfer
from liver_slurm.worker.memory_agreement import MemoryAgreement, agree_on_memory, forget_peak, measure_card
from liver_slurm.worker.mirror_choice import agree, wanted
from liver_slurm.worker.mirroring import Mirrors
from liver_slurm.worker.mirrors import open_mirrors
from liver_slurm.worker.preparation import ClosableStore, Preparation
from liver_slurm.worker.state_transfer import TransferBuilder, TransferEndpoints


@dataclass
class TargetWorld:
    """What this worker has built for one generation; handed from the thread that prepares to the training thread."""

    membership: Membership
    state: TrainingShard | None = None
    """This worker's shard; None for a worker that is no member, and, in mode flat, until :meth:`settle`."""
    transfer: Transfer | None = None
    """Moves the early layers, in the way of stream.mode; None for a world without a source."""
    plan_seconds: float = 0.0
    mirrors: Mirrors | None = None
    """Of this world; None: no rank of it holds anything alone, or this worker is no member."""
    late: LayerwiseTransfer | None = None
    """Moves the layers that had no room beside the live world; None: there are none."""
    held_bytes: int = 0
    """State of both worlds while training goes on."""
    state_peak_bytes: int = 0
    """Peak of the state of both worlds and staging so far; see :meth:`holds`."""
    world: ProcessGroups | None = None
    """Its process groups; None for a worker that is no member."""
    flat: bool = False
    """It is built when the old world is gone."""
    image: HostImage | None = None
    """In mode flat: what the shard will hold; None for a worker that is no member."""
    leaves_from: int = -1
    """Step from which on state may leave while training runs; -1: not known."""
    cutover_step: int = -1
    """Steps that are completed at the cutover; -1: not known."""
    rate: float = 0.0
    """Bytes a second at which a probe arrived from the workers that will send; 0.0: none will, or mode pause."""
    derives: bool = False
    """Masters and moments move, and weights are derived from them."""
    _build: Callable[[], TrainingShard] | None = None
    _store: ClosableStore | None = None
    _dialling: Connections | None = None
    recovers: bool = False
    """It follows a broken world, whose members stand still."""
    scribe: bool = False
    """This worker adds to the metrics what a lost one did not write any more."""
    back: bool = False
    """It begins with a step that snapshots were taken at: steps behind that are trained again."""
    _phase: Literal["preparing", "prepared", "streaming"] = "preparing"
    _given_up: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def given_up(self) -> bool:
        """No worker will enter it."""
        return self._given_up

    @property
    def waits(self) -> bool:
        """The training thread is at the cutover to it."""
        return self._phase == "streaming"

    def stage(self, voted: int) -> Stage:
        """Return how far this worker is with it; ``voted``: generation of the world that it has voted on last."""
        return "voted" if voted == self.membership.generation else self._phase

    @property
    def overlap(self) -> Transfer | None:
        """The transfer, if state moves while training runs."""
        return self.transfer if self.transfer is not None and self.transfer.beside_training else None

    @property
    def no_way_back(self) -> bool:
        """State of the old world has been freed to make room for late layers."""
        return self.late is not None and self.late.freed

    def takes(self, store: ClosableStore) -> None:
        """Keep the store that its members meet in, until nothing is asked of it any more."""
        with self._lock:
            self._store = store
            given_up = self._given_up
        if given_up:
            store.close()

    def dials(self, connections: Connections) -> None:
        """Let these be given up with it: whoever builds it may wait there for a peer that does not come."""
        with self._lock:
            self._dialling = connections
            given_up = self._given_up
        if given_up:
            connections.give_up()

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
            store, dialling = self._store, self._dialling
        # Whoever builds it waits for others there; in threads, as it takes a moment until all are thrown out.
        if self._phase == "preparing" and store is not None:
            threading.Thread(target=store.close, name="close store", daemon=True).start()
        if self._phase == "preparing" and dialling is not None:
            threading.Thread(target=dialling.give_up, name="give up", daemon=True).start()
        if self._phase == "streaming":
            if self.transfer is not None:
                self.transfer.abort()
            if self.mirrors is not None:
                self.mirrors.abort()  # what goes to the keeper before the vote may wait for one that does not answer
            if self.world is not None and first:
                self.world.abort()  # the training thread may be in its first forward pass
        elif self._phase == "preparing" and self.transfer is not None:
            self.transfer.abort()  # it may be reading a peer that does not answer
        elif self._phase == "prepared" and first:
            threading.Thread(target=self.discard, name="discard", daemon=True).start()
        return self._phase == "streaming"

    def leave_collectives(self) -> None:
        """Throw the training thread out of its first step in this world, which is committed and broken already."""
        # Before the cutover it is in none of them, and what is built is still to be entered.
        if self._phase == "streaming" and self.world is not None:
            self.world.abort()

    def builds(self, world: ProcessGroups, build: Callable[[], TrainingShard]) -> None:
        """Keep the process groups, and what builds the shard in them."""
        self.world, self._build = world, build

    def settle(self) -> TrainingShard:
        """Build the shard, with undefined values, and return it; in mode flat, once the old world's memory is free."""
        assert self._build is not None, "only members of a world have a shard in it"
        with plain_objects.alone() if self.flat else nullcontext():  # a peer that dies now must not take this one along
            self.state = self._build()
        return self.state

    def close_transfer(self) -> None:
        """Close the transfer's connections, and that to the store: peers are dialled no more."""
        with ExitStack() as last_first:
            if self._store is not None:
                last_first.callback(self._store.close)
            if self.image is not None:
                last_first.callback(self.image.close)
            if self.transfer is not None:
                last_first.callback(self.transfer.close)
            self.transfer = self._store = None

    def discard(self) -> None:
        """Free everything that was built, though some of it cannot be."""
        with ExitStack() as last_first:
            if self.world is not None:
                last_first.callback(self.world.destroy)
            if self.state is not None:
                last_first.callback(self.state.clear_caches)
            if self.mirrors is not None:
                last_first.callback(self.mirrors.close)
            last_first.callback(self.close_transfer)
            self.late = self.mirrors = self.state = self.world = None


def prepare(target: TargetWorld, preparation: Preparation) -> None:
    """Build ``target``; blocks until all other members do the same.

    Raises:
        RuntimeError, LiverError: it cannot be built.
    """
    message, config, device = preparation.message, preparation.config, preparation.device
    reclaim()  # now that memory is needed
    store = preparation.open_store(message, preparation.timeout)
    target.takes(store)
    has_source = message.source_generation >= 0
    if not has_source and preparation.live is not None:
        release(preparation.live, None)  # of a broken world, which has lost state that nobody holds
    memory = MemoryAgreement()
    if has_source:
        card = measure_card(device, preparation.live) if device.type == "cuda" else None
        forget_peak(device)
        live, spare = preparation.live, preparation.rooms.spare_bytes
        memory = agree_on_memory(message, preparation.worker, config, preparation.engine, live, store, card, spare)
        target.flat = memory.flat
    if preparation.worker in message.members:
        _build(target, preparation, store)
        if target.state is not None:
            _open_mirrors(target, target.state.replica(), preparation, store)
    if has_source:
        _allocate(target, preparation.live, memory)
        _connect(target, preparation, memory, store)
        if target.image is not None:
            _open_mirrors(target, target.image.replica, preparation, store)


def _build(target: TargetWorld, preparation: Preparation, store: Any) -> None:
    """Build the process groups and, but in mode flat, this worker's shard.

    Without a source world it gets the values to start from.
    """
    message, config, device = preparation.message, preparation.config, preparation.device
    backend = "nccl" if device.type == "cuda" else "gloo"
    world = build_world(target.membership, preparation.worker, store, backend, device, preparation.timeout)
    fresh = message.source_generation < 0
    target.builds(world, partial(preparation.engine.build, config, world, device, fresh=fresh))
    if target.flat:
        return
    shard = target.settle()
    if fresh:
        if message.checkpoint and message.checkpoint == config.train.start_from:
            load_start(shard, Path(message.checkpoint), config.train.start_optimizer == "loaded")
        elif message.checkpoint:
            load_checkpoint(shard, Path(message.checkpoint))
        show(shard)


def _open_mirrors(target: TargetWorld, replica: Replica, preparation: Preparation, store: Any) -> None:
    """Connect to the peer that is to keep this rank's state, where no other rank holds it.

    Args:
        replica: what that state is, wherever it lies now.
    """
    message, config, device, world = preparation.message, preparation.config, preparation.device, target.membership
    rank = world.rank_of(preparation.worker)
    if rank is None or not wanted(config, world.layout, device):
        return
    name, hosts = f"generation{message.generation}/mirror", [message.hosts.get(name, "") for name in world.members]
    freed = preparation.rooms.spare_bytes + (preparation.mirrors.nbytes if preparation.mirrors is not None else 0)
    choice = agree(dist.PrefixStore(f"{name}/choice/", store), rank, hosts, replica, config, device, freed)
    if choice.kind == "none":
        return
    connections = Opening(store, name, rank, world.layout.size, config.stream, device).connections("mirrors")
    target.dials(connections)
    target.mirrors = open_mirrors(connections, world, rank, hosts, choice, preparation.rooms, preparation.proofs)
    if target.state is not None:
        target.mirrors.attach(target.state)


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
    if preparation.mirrors is not None:
        endpoints.take_over(preparation.mirrors, device, lambda: _meet(target, endpoints, preparation, store))
    # Mirrors, snapshots and images are of masters and moments, so weights are derived from them also in a pause.
    beside = preparation.overlap and not target.flat
    # A broken world's weights may be incomplete: it may have broken while they were gathered.
    target.derives = preparation.overlap or target.flat or bool(message.mirrors) or message.standing
    begun = time.perf_counter()
    plan = _plan(endpoints, config, preparation.engine, store, derived=target.derives)
    target.plan_seconds = time.perf_counter() - begun
    opening = Opening(
        store,
        f"generation{message.generation}/transfer",
        endpoints.me,
        len(endpoints.peers.names),
        config.stream,
        device,
    )
    begun = time.perf_counter()
    if target.flat and endpoints.target_rank is not None:
        target.image = endpoints.image = HostImage(plan.target, endpoints.target_rank, preparation.rooms, device)
    builder = TransferBuilder(endpoints, plan, beside, memory, opening)
    target.transfer, target.late = builder.build()
    target.plan_seconds += time.perf_counter() - begun
    if target.transfer.beside_training:
        target.rate = target.transfer.probe()


def _meet(target: TargetWorld, endpoints: TransferEndpoints, preparation: Preparation, store: Any) -> Connections:
    """Make connections between survivors that rebuild from parity what is lost."""
    name, peers = f"generation{endpoints.generation}/rebuild", len(endpoints.peers.names)
    opening = Opening(store, name, endpoints.me, peers, preparation.config.stream, preparation.device)
    connections = opening.connections("snapshots")
    target.dials(connections)
    return connections


def _plan(endpoints: TransferEndpoints, config: JobConfig, engine: Engine, store: Any, derived: bool) -> TransferPlan:
    """Exchange through the store what every rank of both worlds holds, and plan the transfer."""
    scope = dist.PrefixStore(f"generation{endpoints.generation}/spec/", store)
    if endpoints.old is not None:
        layout = endpoints.source.layout
        held = {rank: engine.shard_spec(config, layout, rank) for rank in endpoints.taken_over}
        publish(scope, "source", layout, {**held, endpoints.old.world.rank: endpoints.old.spec}, endpoints.lost)
    if endpoints.new is not None:
        publish(scope, "target", endpoints.target.layout, {endpoints.new.world.rank: endpoints.new.spec})
    elif endpoints.target_rank is not None:  # it is not built yet
        rank, layout = endpoints.target_rank, endpoints.target.layout
        publish(scope, "target", layout, {rank: engine.shard_spec(config, layout, rank)})
    train, dtype = config.train, moment_dtype_of(config.train)

    def world(side: str, membership: Membership, gone: frozenset[int]) -> WorldSpec:
        layout, how = membership.layout, (train.distributed_optimizer, train.precision)
        bucket = engine.gradient_bucket(config, layout)
        return WorldSpec(layout, learn(scope, side), *how, bucket, derived, gone, dtype)

    source, target = world("source", endpoints.source, endpoints.lost), world("target", endpoints.target, frozenset())
    return plan_transfer(source, target, endpoints.peers.keep, endpoints.places)
