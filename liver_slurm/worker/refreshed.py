"""A worker's part in mirrors that are refreshed every some steps, as copies or as parity of a group of owners."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.replica import Replica
from liver_slurm.reshard.parity import Choice
from liver_slurm.reshard.snapshots import Kept
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.mirror.host_room import Lease
from liver_slurm.transfer.mirror.proof import Proofs, compare
from liver_slurm.transfer.mirror.snapshot import copy, fold_received
from liver_slurm.transfer.mirror.snapshot_keeper import SnapshotKeeper
from liver_slurm.transfer.mirror.snapshot_owner import SnapshotOwner
from liver_slurm.transfer.mirror.snapshot_sender import SnapshotSender
from liver_slurm.worker.mirroring import Holds, Meeting, Word, on_device


class Refreshed:
    """Mirrors of one world; methods are those of :class:`liver_slurm.worker.mirroring.Mirrors`."""

    def __init__(
        self,
        connections: Connections,
        keeper: int,
        owners: Collection[str],
        kept: Sequence[Mapping[int, str]],
        choice: Choice,
        lease: Lease,
        proofs: Proofs,
    ) -> None:
        """Connect to all peers.

        Args:
            keeper: rank that keeps this worker's state.
            owners: workers, this one among them, whose states it keeps together.
            kept: ranks, and their workers, whose states this one keeps together.
            choice: how they are kept.
            lease: of host memory; ended with this.
            proofs: of this worker.

        Raises:
            TransferError: one of them is gone.
        """
        self.way = choice.told
        self._connections, self._owners = connections, owners
        self._rebuilt: dict[str, Replica] = {}
        """State of workers that are gone, of which only parity is kept here."""
        self._lease, self._proofs = lease, proofs
        connection = connections.outgoing(keeper)
        self._owner: SnapshotOwner = (
            SnapshotSender(connection, choice.every, lease, alone=len(owners) == 1)
            if choice.beside
            else SnapshotOwner(connection, choice.every)
        )
        self._keepers = [
            SnapshotKeeper({name: connections.incoming(rank) for rank, name in group.items()}, lease) for group in kept
        ]
        for each in self._keepers:
            each.start()
        self._shard: TrainingShard | None = None

    def attach(self, shard: TrainingShard) -> None:
        self._shard = shard
        self._owner.attach(shard)

    @property
    def ready(self) -> bool:
        return self._owner.ready

    def prime(self, _step: int) -> None:
        """Do nothing: the memory for it may be that of the world before, until the commit."""

    def all_ready(self) -> None:
        self._owner.all_ready()

    @property
    def word(self) -> Word:
        if self._owner.error:
            return "lost"
        return "whole" if self._owner.sent >= 0 else "partial"

    @property
    def seconds(self) -> float:
        return self._owner.seconds

    @property
    def nbytes(self) -> int:
        return self._owner.nbytes + sum(each.nbytes for each in self._keepers)

    def holds(self) -> Holds:
        kept = [Kept(each.owners, each.steps()) for each in self._keepers]
        return Holds(own=self._owner.own_steps, snapshots=kept)

    def rebuild(self, lost: Mapping[str, str], step: int, meeting: Meeting) -> None:
        lent_to = [keeper for name, keeper in lost.items() if name in self._owners and len(self._owners) > 1]
        gathered = {
            name: each for each in self._keepers if len(each.owners) > 1 for name in lost if name in each.owners
        }
        if not lent_to and not gathered:
            return  # the mirrors stay: where nobody is lost, the live world trains on, and may outlive this attempt
        self.abort()
        connections, number = meeting.connect(), meeting.names.index

        def lend() -> None:
            for keeper in lent_to:
                self._owner.send_state(connections.outgoing(number(keeper)), step)

        def fold_others(name: str, keeper: SnapshotKeeper, data: torch.Tensor) -> None:
            for other in keeper.owners:
                if other != name:
                    fold_received(connections.incoming(number(other)), keeper.boxes_of(other), step, data)

        # Lent in a thread, as two workers may need something of each other.
        with closing(connections), ThreadPoolExecutor(1, "lend") as pool:
            try:
                lent = pool.submit(lend)
                for name, keeper in gathered.items():
                    self._rebuilt[name] = keeper.state_of(name, step, partial(fold_others, name, keeper))
                lent.result()
            except OSError as error:
                raise TransferError(f"a peer went away while state was rebuilt from parity: {error}") from error
            finally:
                connections.give_up()

    def state_after(self, name: str, step: int, device: torch.device) -> Replica:
        self.abort()
        keeper = next(each for each in self._keepers if name in each.owners)
        if len(keeper.owners) == 1:
            kept = keeper.state_of(name, step)
        elif name in self._rebuilt:
            kept = self._rebuilt[name]
        else:
            raise TransferError(f"the state of {name} was not rebuilt from parity")
        found = on_device(kept, device)  # a card computes digests in no time
        wrong = compare(found, keeper.digests_of(name, step))
        self._proofs.note(name, step, wrong)
        if wrong:
            keeper.drop(step)
            raise TransferError(f"the mirror of {name} is not what that had after {step} steps: {', '.join(wrong)}")
        return found

    def go_back(self, shard: TrainingShard, step: int) -> None:
        self._owner.stop()
        live = shard.replica()
        copy(self._owner.state_at(step), live)
        shard.overwritten(self._owner.updates_at(step))
        # Only now: a card computes digests in no time, and what was alive is of no use for any older step.
        if wrong := compare(live, self._owner.digests_at(step)):
            self._owner.drop(step)
            raise TransferError(f"what is put by here of step {step} is not what was alive then: {', '.join(wrong)}")

    def abort(self) -> None:
        self._owner.give_up()
        self._lease.give_up()
        self._connections.give_up()

    def close(self) -> None:
        self.abort()
        if self._shard is not None:
            self._shard.when_gradients_are_final(None)
            self._shard = None
        self._owner.close()
        for each in self._keepers:
            each.join()
        self._lease.end()
        self._connections.close()
