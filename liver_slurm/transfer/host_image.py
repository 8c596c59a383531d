"""A target world's state in host memory, until the old world's makes room for it on the card (``stream.mode`` flat).

The card's own functions write to it and read it: on a card its tensors are the card's, though what they lie in is host
memory that is registered. So what reads, copies and proves state needs to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from liver_slurm.engine.api import TrainingShard
from liver_slurm.engine.replica import Replica
from liver_slurm.parallel.torch_private import storage_at
from liver_slurm.reshard.shard_spec import WorldSpec, pieces
from liver_slurm.reshard.tensors import Piece
from liver_slurm.transfer.box_index import ReplicaIndex
from liver_slurm.transfer.mirror.frames import BoxDescription
from liver_slurm.transfer.mirror.host_room import PAGE, HostRoom, Rooms
from liver_slurm.transfer.mirror.snapshot import copy, parts_of, replica_in, room_of

_NO_GROUP = (1.0, 1.0)
"""No update is made here, so none of an update's parameters are asked for."""


class HostImage:
    """What one rank of a target world will hold: masters and moments, and weights that are not trained."""

    _room: HostRoom | None

    def __init__(self, world: WorldSpec, rank: int, rooms: Rooms, device: torch.device) -> None:
        """Take the memory; values are undefined.

        Args:
            world: whose weights are derived from masters.
            rooms: of this worker; what is there already costs no time.
            device: of the world's state.

        Raises:
            OSError, RuntimeError: the memory cannot be had, or not be registered.
        """
        boxes = sorted(_described(world, rank), key=lambda box: box.dtype != "")  # trained ones first, as in a snapshot
        self.nbytes = max(room_of(parts_of(boxes)), PAGE)
        room = rooms.take(self.nbytes)
        self._rooms, self._room = rooms, room
        data = room.data[: self.nbytes]
        if device.type == "cuda":
            there = storage_at(data.data_ptr(), self.nbytes, device)
            data = torch.empty(0, dtype=torch.uint8, device=device).set_(there)
        held = replica_in(data, boxes)
        trained = [replace(box, gradient=partial(torch.empty_like, box.master, device="meta")) for box in held.trained]
        self.replica = Replica(trained, held.fixed)

    def load(self, shard: TrainingShard) -> None:
        """Write it to the shard that was built for this rank; waits until that is done.

        Raises:
            TransferError: the shard has another box.
        """
        index, target = ReplicaIndex(self.replica), shard.replica()
        trained = []
        for box in target.trained:
            tensor, offset, shape = box.piece
            waiting = index.shared(Piece(f"{tensor}@master", offset, shape))
            trained.append(replace(box, state=waiting.state))
        fixed = [(piece, index.shared(piece).state[0]) for piece, _ in target.fixed]
        copy(Replica(trained, fixed), target)

    def close(self) -> None:
        """Give the memory back to the worker's rooms; may be called again."""
        self.replica = Replica([], [])
        room, self._room = self._room, None
        if room is not None:
            self._rooms.put_back(room)


def _described(world: WorldSpec, rank: int) -> Iterator[BoxDescription]:
    """Yield the boxes of a rank, one for each trained box and each weight that is not."""
    for piece in pieces(world, rank):
        weight, _, state = piece.tensor.partition("@")
        if not state:
            yield BoxDescription(*piece, _NO_GROUP, world.weights[weight].dtype)
        elif state == "master":
            moments, dtype = world.moments[weight], world.moment_dtype
            yield BoxDescription(weight, piece.offset, piece.shape, _NO_GROUP, moments=moments, moment_dtype=dtype)
