"""A world's distinct boxes, and which ranks hold each: a table that the planner can join with another world's.

Weights and optimizer state lie differently (the distributed optimizer cuts the latter over data parallel ranks), so a
world has one table for each. All tensors of one parameter's optimizer state lie alike and share the table's rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from liver_slurm.errors import PlanError
from liver_slurm.state.flat import Range
from liver_slurm.state.layout import Layout
from liver_slurm.state.pieces import Box, flat_boxes, shifted
from liver_slurm.state.spec import WorldSpec

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Holdings:
    """Distinct boxes of one kind of state; no two rows of one tensor overlap.

    ``tensor``: [n], number of the weight in the caller's list of names. ``offset``, ``shape``: [n, axes], padded with
    axes of size one. ``holder``: [n], number of the set of ranks that hold the box. ``sets``: those sets, sorted ranks.
    """

    tensor: Ints
    offset: Ints
    shape: Ints
    holder: Ints
    sets: tuple[Ints, ...]


class _Share(NamedTuple):
    """A flat range of a box that one shard's replica ``dp`` holds; ``dp`` None: every replica does."""

    dp: int | None
    start: int
    end: int


_Coordinates = tuple[int, int]
_Shares = dict[tuple[str, Box, Box], dict[_Coordinates, tuple[_Share, ...]]]
_HeldBy = tuple[tuple[_Coordinates, int | None], ...]


def weight_holdings(world: WorldSpec, names: Sequence[str], axes: int) -> Holdings:
    """Where the weights lie: every box of a shard on every data parallel replica."""
    shares: _Shares = {}
    for coordinates, shard in world.shards.items():
        for param in shard.params:
            if world.derived and param.trained:
                continue
            for box in param.boxes:
                whole = (_Share(None, 0, box.size),)
                shares.setdefault((box.tensor, box.offset, box.shape), {})[coordinates] = whole
    return _table(world, shares, names, axes)


def state_holdings(world: WorldSpec, names: Sequence[str], axes: int) -> Holdings:
    """Where the optimizer state lies: as the weights do, or cut over the replicas by the distributed optimizer."""
    shares: _Shares = {}
    for coordinates, shard in world.shards.items():
        ranges = world.ranges(*coordinates) if world.distributed_optimizer else None
        for index, param in enumerate(shard.params):
            if not param.trained:
                continue
            for box in param.boxes:
                if ranges is None:
                    held: tuple[_Share, ...] = (_Share(None, 0, box.size),)
                else:
                    held = _clip(ranges[index], box.start, box.size)
                shares.setdefault((box.tensor, box.offset, box.shape), {})[coordinates] = held
    return _table(world, shares, names, axes)


def _clip(ranges: Iterable[Range], start: int, size: int) -> tuple[_Share, ...]:
    """The parts of a parameter's ranges that fall into its box of ``size`` elements from ``start`` on."""
    clipped = (_Share(r.dp, max(r.start - start, 0), min(r.end - start, size)) for r in ranges)
    return tuple(share for share in clipped if share.start < share.end)


def _table(world: WorldSpec, shares: _Shares, names: Sequence[str], axes: int) -> Holdings:
    layout = world.layout
    number = {name: index for index, name in enumerate(names)}
    sets: dict[_HeldBy, int] = {}
    rows: list[tuple[int, ...]] = []
    holders: list[int] = []
    for (name, offset, shape), by_shard in shares.items():
        pad = axes - len(shape)
        for start, end, held_by in _atoms(by_shard):
            holder = sets.setdefault(held_by, len(sets))
            for inside, extent in flat_boxes(shape, start, end):
                rows.append((number[name], *shifted(offset, inside), *(0,) * pad, *extent, *(1,) * pad))
                holders.append(holder)
    table = np.array(rows, dtype=np.int64).reshape(len(rows), 1 + 2 * axes)
    ranks = tuple(np.array(sorted(_ranks(layout, held_by)), dtype=np.int64) for held_by in sets)
    holdings = Holdings(
        table[:, 0], table[:, 1 : 1 + axes], table[:, 1 + axes :], np.array(holders, dtype=np.int64), ranks
    )
    _check_disjoint(holdings, world, names)
    return holdings


def _ranks(layout: Layout, held_by: _HeldBy) -> Iterator[int]:
    for (tp, pp), dp in held_by:
        for replica in range(layout.dp) if dp is None else (dp,):
            yield layout.rank(tp, pp, replica)


def _atoms(by_shard: dict[_Coordinates, tuple[_Share, ...]]) -> Iterator[tuple[int, int, _HeldBy]]:
    """Flat ranges of one box that the same replicas hold whole: (start, end, who), in order.

    Replicas of a box are nearly always cut alike; where they are not, every cut of one of them is a cut for all.
    """
    shards = list(by_shard)
    first = by_shard[shards[0]]
    if all(shares == first for shares in by_shard.values()):
        for share in first:
            yield share.start, share.end, tuple((shard, share.dp) for shard in shards)
        return
    cuts = sorted({cut for shares in by_shard.values() for share in shares for cut in (share.start, share.end)})
    for start, end in pairwise(cuts):
        held_by = tuple(
            (shard, share.dp)
            for shard, shares in by_shard.items()
            for share in shares
            if share.start <= start and end <= share.end
        )
        if held_by:
            yield start, end, held_by


def _check_disjoint(holdings: Holdings, world: WorldSpec, names: Sequence[str]) -> None:
    """Two distinct boxes that overlap would make an element arrive twice; Megatron never cuts replicas so."""
    held = np.zeros(len(names), dtype=np.int64)
    np.add.at(held, holdings.tensor, holdings.shape.prod(axis=1))
    for index in np.flatnonzero(held).tolist():
        info = world.weights[names[index]]
        if held[index] <= math.prod(info.shape):
            continue
        raise PlanError(f"{info.name}: shards of {world.layout} hold boxes that overlap without being the same")
