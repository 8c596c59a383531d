"""Ranks of a world whose mirrors are refreshed over real connections, with hand-made steps.

Each plays what :class:`TrainingShard` promises, above all that no rank begins an update before all ranks have come to
the reduction ahead of it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from snapshot_shard import Shard

from liver_slurm.engine.replica import Replica
from liver_slurm.reshard.snapshots import Kept, Survivor
from liver_slurm.transfer.mirror.frames import Header, Kind, describe
from liver_slurm.transfer.mirror.host_room import Lease, Rooms
from liver_slurm.transfer.mirror.snapshot import parts_of, tensors_of
from liver_slurm.transfer.mirror.snapshot_keeper import SnapshotKeeper
from liver_slurm.transfer.mirror.snapshot_owner import SnapshotOwner


class World:
    """Ranks in groups, each of which has its parity kept by a rank that is in another group."""

    def __init__(
        self,
        groups: list[list[int]],
        keepers: list[int],
        every: int,
        owner: Callable[[socket.socket, int, Lease], SnapshotOwner] = lambda ours, every, _: SnapshotOwner(ours, every),
    ) -> None:
        self.size, self.groups, self.kept_by = sum(map(len, groups)), groups, keepers
        self.shards = [Shard(rank) for rank in range(self.size)]
        self.pairs = {rank: socket.socketpair() for rank in range(self.size)}
        self.leases = [Rooms(None).lease() for _ in range(2 * self.size)]
        self.owners = {rank: owner(ours, every, self.leases[rank]) for rank, (ours, _) in self.pairs.items()}
        for rank, each in self.owners.items():
            each.attach(self.shards[rank])  # type: ignore[arg-type]
        self.keepers = [
            SnapshotKeeper({str(rank): self.pairs[rank][1] for rank in group}, lease)
            for group, lease in zip(groups, self.leases[self.size :], strict=False)
        ]
        for keeper in self.keepers:
            keeper.start()
        self.live = [0] * self.size
        self.states: list[dict[int, list[torch.Tensor]]] = [{0: shard.state()} for shard in self.shards]

    def gradients_final(self, ranks: list[int], step: int, finite: bool = True) -> None:
        """These ranks call what is to be called there, all at once, as owners of a group wait for nobody."""
        with ThreadPoolExecutor(max(1, len(ranks))) as pool:
            list(pool.map(lambda rank: self.owners[rank].refresh(self.shards[rank], step, finite), ranks))  # type: ignore[arg-type]

    def update(self, ranks: list[int], step: int) -> None:
        for rank in ranks:
            self.shards[rank].update(step)
            self.live[rank] = step + 1
            self.states[rank][step + 1] = self.shards[rank].state()

    def step(self, step: int, finite: bool = True) -> None:
        self.gradients_final([*range(self.size)], step, finite)
        if finite:
            self.update([*range(self.size)], step)
        else:
            for rank in range(self.size):
                self.live[rank] = step + 1
                self.states[rank][step + 1] = self.shards[rank].state()

    def send_a_part(self, rank: int, step: int) -> None:
        """It dies while it sends."""
        ours = self.pairs[rank][0]
        description = describe(self.shards[rank].replica())
        if self.owners[rank].sent < 0:
            ours.sendall(Header(Kind.DESCRIPTION, nbytes=len(description)).encode() + description)
        ours.sendall(Header(Kind.STATE, step, 0).encode() + b"\x55" * 3)

    def die(self, gone: set[int]) -> list[Survivor]:
        """What the others say then."""
        for rank, (ours, theirs) in self.pairs.items():
            self.owners[rank].give_up()
            ours.shutdown(socket.SHUT_RDWR)
            theirs.shutdown(socket.SHUT_RDWR)
        for keeper in self.keepers:
            keeper.join()
        return [
            Survivor(
                str(rank),
                self.live[rank],
                self.owners[rank].own_steps,
                [
                    Kept(one.owners, one.steps())
                    for one, by in zip(self.keepers, self.kept_by, strict=True)
                    if by == rank
                ],
            )
            for rank in range(self.size)
            if rank not in gone
        ]

    def own_state(self, rank: int, step: int) -> Replica:
        if self.live[rank] == step:
            return self.shards[rank].replica()
        return self.owners[rank].state_at(step)

    def state_of(self, gone: int, step: int) -> list[torch.Tensor]:
        """That of one that is gone, from its keeper and the others of its group."""
        keeper = next(one for one in self.keepers if str(gone) in one.owners)

        def fold(data: torch.Tensor) -> None:
            for name in keeper.owners:
                if name == str(gone):
                    continue
                for part, view in zip(
                    parts_of(keeper.boxes_of(name)), tensors_of(self.own_state(int(name), step)), strict=True
                ):
                    data[part.start : part.start + part.nbytes].bitwise_xor_(view.reshape(-1).view(torch.uint8))

        return tensors_of(keeper.state_of(str(gone), step, fold))

    def close(self) -> None:
        self.die(set())
        for owner in self.owners.values():
            owner.close()
        for ours, theirs in self.pairs.values():
            ours.close()
            theirs.close()
