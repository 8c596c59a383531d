"""A worker's part in its world's mirrors: its own state is kept by one peer, and it keeps another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.replica import Replica
from liver_slurm.parallel.membership import Membership
from liver_slurm.reshard.parity import Choice, groups
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.mirror.host_room import Rooms
from liver_slurm.transfer.mirror.keeper import MirrorKeeper, Replay, replay
from liver_slurm.transfer.mirror.owner import MirrorOwner
from liver_slurm.transfer.mirror.proof import Proofs
from liver_slurm.worker import fault_injection
from liver_slurm.worker.mirroring import Holds, Meeting, Mirrors, Word, on_device
from liver_slurm.worker.refreshed import Refreshed


class Replayed:
    """Mirrors that are current to the last update; methods are those of :class:`Mirrors`."""

    way = "copies, current to the last update"

    def __init__(
        self, connections: Connections, keeper: int, kept: int, name: str, proofs: Proofs, make: Replay = replay
    ) -> None:
        """Connect to both peers.

        Args:
            connections: whose numbers are the world's ranks.
            keeper, kept: rank that keeps this worker's state, and rank whose state it keeps.
            name: the worker of rank ``kept``.
            proofs: of this worker.
            make: makes updates of what is kept.

        Raises:
            TransferError: one of them is gone.
        """
        self._connections = connections
        self._owner = MirrorOwner(connections.outgoing(keeper))
        self._keeper = MirrorKeeper(connections.incoming(kept), name, proofs, make)
        self._keeper.start()
        self._shard: TrainingShard | None = None

    def attach(self, shard: TrainingShard) -> None:
        self._shard = shard
        shard.when_gradients_are_final(lambda step, finite: self._owner.ship(shard, step, finite))

    ready = True

    def prime(self, step: int) -> None:
        assert self._shard is not None
        self._owner.prime(self._shard, step)

    def all_ready(self) -> None:
        """Do nothing: they begin with the world."""

    @property
    def word(self) -> Word:
        if self._owner.error:
            return "lost"
        return "whole" if self._owner.whole else "partial"

    @property
    def seconds(self) -> float:
        return self._owner.seconds

    @property
    def nbytes(self) -> int:
        return self._owner.nbytes + self._keeper.nbytes

    def holds(self) -> Holds:
        self.abort()
        self._keeper.join()  # what has come and is not looked at yet may be a proof that does not hold
        owner = self._keeper.owner
        return Holds({owner: self._keeper.extent()}, {owner: self._keeper.verified})

    def rebuild(self, lost: Mapping[str, str], step: int, meeting: Meeting) -> None:
        """Do nothing: what is kept is whole."""

    def state_after(self, name: str, step: int, device: torch.device) -> Replica:
        assert name == self._keeper.owner, "a worker keeps one mirror"
        self.abort()
        return on_device(self._keeper.state_after(step), device)

    def go_back(self, _shard: TrainingShard, step: int) -> None:
        raise TransferError(f"the state after {step} steps is not put by here, as mirrors are current to the last one")

    def abort(self) -> None:
        self._connections.give_up()

    def close(self) -> None:
        self.abort()
        if self._shard is not None:
            self._shard.when_gradients_are_final(None)
            self._shard = None
        self._owner.stop()
        self._keeper.join()
        self._connections.close()


def open_mirrors(
    connections: Connections,
    world: Membership,
    rank: int,
    hosts: Sequence[str],
    choice: Choice,
    rooms: Rooms,
    proofs: Proofs,
) -> Mirrors:
    """Connect a rank of a world to its peers; all members must do so.

    Args:
        connections: whose numbers are the world's ranks.
        hosts: of the world's ranks.
        choice: how mirrors are kept; the same on all.
        rooms, proofs: of this worker.

    Raises:
        TransferError: a peer is gone, or the connections were given up.
    """
    placed = groups(hosts, choice.group)
    (own,) = (group for group in placed if rank in group.owners)
    kept = [{other: world.members[other] for other in group.owners} for group in placed if group.keeper == rank]
    with ExitStack() as unless_opened:
        unless_opened.callback(connections.close)
        mirrors: Mirrors
        if choice.every:
            owners = [world.members[other] for other in own.owners]
            lease = rooms.lease()
            unless_opened.callback(lease.end)
            mirrors = Refreshed(connections, own.keeper, owners, kept, choice, lease, proofs)
        else:
            ((other, name),) = kept[0].items()
            make = fault_injection.replays(world.members[rank], replay)
            mirrors = Replayed(connections, own.keeper, other, name, proofs, make)
        unless_opened.pop_all()
    return mirrors
