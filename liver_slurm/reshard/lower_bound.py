"""The lower bound of a transfer: what workers need and do not hold, whatever the plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from liver_slurm.reshard.overlap_join import overlapping, shared_boxes
from liver_slurm.reshard.ownership import Ownership, ShardBoxes, Shares, shard_boxes, state_shares, weight_shares
from liver_slurm.reshard.rank_sets import Ints, RankSets, spans
from liver_slurm.reshard.shard_spec import WorldSpec
from liver_slurm.reshard.slicing import cut
from liver_slurm.reshard.tensors import ITEMSIZE, state_tensors


def remote_minimum(source: WorldSpec, target: WorldSpec, keep: Sequence[int | None]) -> int:
    """Return the bytes that must go from one worker to another whatever the plan.

    Found from what each worker holds before and after, and not from a plan.

    Args:
        source: the live world.
        target: the world to fill, of the same model.
        keep: for every target rank, the source rank of the same worker, or None for a joiner.
    """
    names = list(target.weights)
    axes = max((len(info.shape) for info in target.weights.values()), default=1)
    boxes = shard_boxes(source, names, axes), shard_boxes(target, names, axes)
    staying = np.array([rank is not None for rank in keep], dtype=bool)
    before = np.array([rank for rank in keep if rank is not None], dtype=np.int64)
    units = (
        [
            0 if target.derived and name in target.trained else ITEMSIZE[info.dtype]
            for name, info in target.weights.items()
        ],
        [
            sum(
                ITEMSIZE[target.tensors[state].dtype]
                for state in state_tensors(name, info.dtype, target.derived, target.moments[name])
            )
            if name in target.trained
            else 0
            for name, info in target.weights.items()
        ],
    )
    missing = 0
    for shares_of, unit in zip((weight_shares, state_shares), units, strict=True):
        bytes_of = np.array(unit, dtype=np.int64)
        held, needed = (
            _Held(world, of, shares_of(world, of)) for world, of in zip((source, target), boxes, strict=True)
        )
        owners = np.arange(target.layout.size, dtype=np.int64)
        missing += int((needed.bytes(bytes_of)[needed.holder_of(owners)]).sum())
        missing -= _in_common(held, held.holder_of(before), needed, needed.holder_of(owners[staying]), bytes_of)
    return missing


class _Held:
    """What each holder of one kind of state holds; a holder is a shard, or one replica of it where replicas differ."""

    def __init__(self, world: WorldSpec, boxes: ShardBoxes, shares: Shares) -> None:
        layout = world.layout
        replicas = layout.replica_groups()  # row: shard; a holder is a row, or where replicas differ an element
        self._holder = np.empty(layout.size, dtype=np.int64)
        self._holder[replicas] = np.arange(replicas.size).reshape(replicas.shape)
        if not shares.cut:
            self._holder //= layout.replicas
        row, inside, shape = cut(boxes.shape[shares.box], shares.start, shares.end)
        order = np.argsort(shares.who[row], kind="stable")
        row, inside, self.shape = row[order], inside[order], shape[order]
        box = shares.box[row]
        self.tensor, self.offset = boxes.tensor[box], boxes.offset[box] + inside
        holders = replicas.size if shares.cut else len(replicas)
        self.bounds = np.searchsorted(shares.who[row], np.arange(holders + 1))

    def holder_of(self, rank: Ints) -> Ints:
        """Return the holder whose boxes each rank has."""
        return np.asarray(self._holder[rank], dtype=np.int64)

    def bytes(self, unit: Ints) -> Ints:
        """Return the bytes of each holder; ``unit``: bytes of an element of each tensor."""
        total = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.shape.prod(axis=1) * unit[self.tensor])])
        return np.asarray(np.diff(total[self.bounds]), dtype=np.int64)

    def boxes_of(self, holders: Ints, tensors: int) -> Ownership:
        """Return the boxes of each of ``holders``, as if the i-th had tensors ``i · tensors …`` of its own."""
        count = np.diff(self.bounds)[holders]
        rows = spans(self.bounds[:-1][holders], count)
        number = np.repeat(np.arange(len(holders), dtype=np.int64), count)
        return Ownership(
            number * tensors + self.tensor[rows], self.offset[rows], self.shape[rows], number, RankSets.of([])
        )


def _in_common(held: _Held, before: Ints, needed: _Held, after: Ints, unit: Ints) -> int:
    """Return the bytes that workers which were holders ``before`` in one world and are ``after`` in the other have in
    both."""
    holders = len(needed.bounds)
    pairs, times = np.unique(before * holders + after, return_counts=True)
    source = held.boxes_of(pairs // holders, len(unit))
    target = needed.boxes_of(pairs % holders, len(unit))
    mine, theirs = overlapping(source, target)
    _, shape = shared_boxes(source, mine, target, theirs)
    return int((shape.prod(axis=1) * unit[source.tensor[mine] % len(unit)] * times[source.holder[mine]]).sum())
