"""A world's distinct boxes, and which ranks hold each: a table that the planner can join with another world's.

Weights and optimizer state lie differently (the distributed optimizer cuts the latter over data parallel ranks), so a
world has one table for each. All tensors of one parameter's optimizer state lie alike and share the table's rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liver_slurm.base.errors import PlanError
from liver_slurm.reshard.rank_sets import Ints, RankSets, spans
from liver_slurm.reshard.shard_spec import WorldSpec
from liver_slurm.reshard.slicing import cut


@dataclass(frozen=True)
class Ownership:
    """Distinct boxes of one kind of state; no two rows of one tensor overlap.

    ``tensor``: [n], number of the weight in the caller's list of names. ``offset``, ``shape``: [n, axes], padded with
    axes of size one. ``holder``: [n], number of the set of ranks that hold the box.
    """

    tensor: Ints
    offset: Ints
    shape: Ints
    holder: Ints
    sets: RankSets


@dataclass(frozen=True)
class ShardBoxes:
    """Every box of every shard of a world, a row each.

    ``shard``: number of the shard in the layout's list of them. ``param``: number of the parameter, counted over all
    shards in that order. ``start``: where the box begins in its flat parameter.
    """

    shard: Ints
    param: Ints
    tensor: Ints
    offset: Ints
    shape: Ints
    start: Ints
    trained: npt.NDArray[np.bool_]

    @property
    def size(self) -> Ints:
        """Elements of each box."""
        return np.asarray(self.shape.prod(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class Shares:
    """Flat ranges of boxes, a row each: ``box`` is a row of :class:`ShardBoxes`.

    ``who``: [n], the shard whose replicas all hold the range; or, where ``cut``, shard · replicas + the one that does.
    """

    box: Ints
    start: Ints
    end: Ints
    who: Ints
    cut: bool


def ownership(world: WorldSpec, names: Sequence[str], axes: int) -> tuple[Ownership, Ownership]:
    """Return where a world's weights lie, and where its optimizer state does.

    Args:
        world: the world.
        names: the weights that tensor numbers stand for.
        axes: what offsets and shapes are padded to.

    Raises:
        PlanError: boxes overlap without being the same, or only lost ranks hold one of them.
    """
    boxes = shard_boxes(world, names, axes)
    weights, state = weight_shares(world, boxes), state_shares(world, boxes)
    return _table(world, boxes, weights, names), _table(world, boxes, state, names)


def shard_boxes(world: WorldSpec, names: Sequence[str], axes: int) -> ShardBoxes:
    """Return the boxes of all shards."""
    number = {name: index for index, name in enumerate(names)}
    padding = [((0,) * (axes - length), (1,) * (axes - length)) for length in range(axes + 1)]
    rows: list[tuple[int, ...]] = []
    params = 0
    layout = world.layout
    for shard, key in enumerate(layout.shards()):
        for param in world.shards[key].params:
            trains = param.group is not None
            for tensor, _, offset, shape, start, _ in param.boxes:
                low, high = padding[len(shape)]
                rows.append((shard, params, number[tensor], start, trains, *offset, *low, *shape, *high))
            params += 1
    table = np.array(rows, dtype=np.int64).reshape(len(rows), 5 + 2 * axes)
    shard_of, owning, tensor_of, start_of, trained = (table[:, column] for column in range(5))
    offsets, shapes = np.ascontiguousarray(table[:, 5 : 5 + axes]), np.ascontiguousarray(table[:, 5 + axes :])
    return ShardBoxes(shard_of, owning, tensor_of, offsets, shapes, start_of, trained.astype(bool))


def weight_shares(world: WorldSpec, boxes: ShardBoxes) -> Shares:
    """Return the weights: every box of a shard is on every replica of it."""
    return _whole(boxes, np.flatnonzero(~boxes.trained) if world.derived else np.arange(len(boxes.shard)))


def state_shares(world: WorldSpec, boxes: ShardBoxes) -> Shares:
    """Return the optimizer state: as the weights, or cut over the replicas by the distributed optimizer."""
    if not world.distributed_optimizer:
        return _whole(boxes, np.flatnonzero(boxes.trained))
    layout = world.layout
    tables = []
    params = 0
    for shard, key in enumerate(layout.shards()):
        table = world.range_table(*key)
        tables.append(table + np.array([params, shard * layout.replicas, 0, 0], dtype=np.int64))
        params += len(world.shards[key].params)
    param, who, start, end = np.concatenate(tables).T
    # Boxes of one parameter are neighbours in the table of boxes.
    first = np.searchsorted(boxes.param, param, side="left")
    count = np.searchsorted(boxes.param, param, side="right") - first
    box, row = spans(first, count), np.repeat(np.arange(len(param), dtype=np.int64), count)
    start = np.maximum(start[row] - boxes.start[box], 0)
    end = np.minimum(end[row] - boxes.start[box], boxes.size[box])
    some = start < end
    return Shares(box[some], start[some], end[some], who[row[some]], cut=True)


def _whole(boxes: ShardBoxes, rows: Ints) -> Shares:
    return Shares(rows, np.zeros(len(rows), dtype=np.int64), boxes.size[rows], boxes.shard[rows], cut=False)


def _table(world: WorldSpec, boxes: ShardBoxes, shares: Shares, names: Sequence[str]) -> Ownership:
    """Make one box of those on several shards, cut where any of their holders' shares begins or ends.

    So each part is held whole by one set of ranks. (Replicas are nearly always cut alike.)
    """
    same = _same_boxes(boxes)
    span = int(boxes.size.max(initial=0)) + 1
    start, end = same[shares.box] * span + shares.start, same[shares.box] * span + shares.end
    edges = np.unique(np.concatenate([start, end]))
    first, last = np.searchsorted(edges, start), np.searchsorted(edges, end)
    part, share = spans(first, last - first), np.repeat(np.arange(len(start), dtype=np.int64), last - first)
    order = np.lexsort([shares.who[share], part])
    part, share = part[order], share[order]
    begins = np.flatnonzero(np.diff(part, prepend=-1))
    holder, sets = _distinct(shares.who[share], begins)
    box, part = shares.box[share[begins]], part[begins]
    row, inside, shape = cut(boxes.shape[box], edges[part] - same[box] * span, edges[part + 1] - same[box] * span)
    found = Ownership(
        boxes.tensor[box][row],
        boxes.offset[box][row] + inside,
        shape,
        holder[row],
        _ranks(world, sets, shares.cut),
    )
    _check_disjoint(found, world, names)
    _check_held(found, world, names)
    return found


def _same_boxes(boxes: ShardBoxes) -> Ints:
    """Return for each row a number that rows of the same tensor, offset and shape share."""
    columns = [boxes.tensor, *boxes.offset.T, *boxes.shape.T]
    order = np.lexsort(columns)
    new = np.zeros(len(order), dtype=bool)
    for column in columns:
        new |= np.diff(column[order], prepend=-1) != 0
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.cumsum(new)
    return number


def _distinct(members: Ints, begins: Ints) -> tuple[Ints, RankSets]:
    """Return, of sorted sets that lie one after the other, the number of each among the distinct ones, and those."""
    sizes = np.diff(np.append(begins, len(members)))
    number = np.zeros(len(begins), dtype=np.int64)
    found = RankSets.of([])
    for size in np.unique(sizes).tolist():
        rows = np.flatnonzero(sizes == size)
        distinct, inverse = np.unique(
            members[spans(begins[rows], sizes[rows])].reshape(len(rows), size), axis=0, return_inverse=True
        )
        number[rows] = inverse.reshape(-1) + len(found)
        found = found + RankSets.sized(distinct.reshape(-1), np.full(len(distinct), size, dtype=np.int64))
    return number, found


def _ranks(world: WorldSpec, sets: RankSets, is_cut: bool) -> RankSets:
    """Make sets of ranks from sets of holders, as :class:`Shares` number them, without those that are lost."""
    replicas = world.layout.replica_groups()
    ranks = replicas.reshape(-1, 1)[sets.ranks] if is_cut else replicas[sets.ranks]
    sizes = sets.sizes * ranks.shape[1]
    number = np.repeat(np.arange(len(sets), dtype=np.int64), sizes)
    ranks = ranks.reshape(-1)
    order = np.lexsort([ranks, number])
    ranks = ranks[order]
    if world.lost:
        left = ~np.isin(ranks, np.array(sorted(world.lost), dtype=np.int64))
        ranks, sizes = ranks[left], np.bincount(number[order][left], minlength=len(sets)).astype(np.int64)
    return RankSets.sized(ranks, sizes)


def _check_held(found: Ownership, world: WorldSpec, names: Sequence[str]) -> None:
    """Raise if a box was held by ranks alone that are lost."""
    for row in np.flatnonzero(found.sets.sizes[found.holder] == 0)[:1]:
        lost = ", ".join(map(str, sorted(world.lost)))
        raise PlanError(
            f"{names[found.tensor[row]]}: no rank that is left of {world.layout} holds the box at "
            f"{tuple(found.offset[row].tolist())}, shape {tuple(found.shape[row].tolist())}; lost: {lost}"
        )


def _check_disjoint(found: Ownership, world: WorldSpec, names: Sequence[str]) -> None:
    """Raise if two distinct boxes overlap, as an element would arrive twice; Megatron never does that to replicas."""
    held = np.zeros(len(names), dtype=np.int64)
    np.add.at(held, found.tensor, found.shape.prod(axis=1))
    for index in np.flatnonzero(held).tolist():
        info = world.weights[names[index]]
        if held[index] <= math.prod(info.shape):
            continue
        raise PlanError(f"{info.name}: shards of {world.layout} hold boxes that overlap without being the same")
