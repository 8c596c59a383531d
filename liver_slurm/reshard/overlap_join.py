"""Which boxes of one table overlap which of another, without comparing all with all."""

from __future__ import annotations

import numpy as np

from liver_slurm.reshard.ownership import Ownership
from liver_slurm.reshard.rank_sets import Ints, spans


def overlapping(source: Ownership, target: Ownership) -> tuple[Ints, Ints]:
    """Return the row numbers (source, target) of all pairs of boxes of the same tensor that share an element.

    The boxes form a tree: tensor, then extent on the first axis, on the second, and so on. Both trees are walked
    together, one axis a level, so work is proportional to the pairs that overlap on all axes seen so far.
    """
    source_order, source_levels = _tree(source)
    target_order, target_levels = _tree(target)
    pairs = (np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
    for source_level, target_level in zip(source_levels, target_levels, strict=True):
        pairs = _descend(*pairs, source_level, target_level)
    # Distinct boxes: each leaf is one row.
    return source_order[pairs[0]], target_order[pairs[1]]


def shared_boxes(source: Ownership, held: Ints, target: Ownership, needed: Ints) -> tuple[Ints, Ints]:
    """Return offset and shape of what the boxes of each pair of :func:`overlapping` have in common."""
    start = np.maximum(source.offset[held], target.offset[needed])
    end = np.minimum(source.offset[held] + source.shape[held], target.offset[needed] + target.shape[needed])
    return start, end - start


class _Level:
    """Nodes of one depth: ``parent`` (sorted), and their extent [start, end) on this level's axis."""

    def __init__(self, parent: Ints, start: Ints, end: Ints) -> None:
        self.parent, self.start, self.end = parent, start, end


def _tree(boxes: Ownership) -> tuple[Ints, list[_Level]]:
    axes = boxes.offset.shape[1]
    ends = boxes.offset + boxes.shape
    keys = [(boxes.tensor, boxes.tensor + 1)] + [(boxes.offset[:, axis], ends[:, axis]) for axis in range(axes)]
    order = np.lexsort([column for start, end in reversed(keys) for column in (end, start)])
    levels = []
    parent = np.zeros(len(order), dtype=np.int64)
    for start, end in keys:
        start, end = start[order], end[order]
        new = np.ones(len(order), dtype=bool)
        new[1:] = (parent[1:] != parent[:-1]) | (start[1:] != start[:-1]) | (end[1:] != end[:-1])
        levels.append(_Level(parent[new], start[new], end[new]))
        parent = np.cumsum(new) - 1
    return order.astype(np.int64), levels


def _descend(source: Ints, target: Ints, source_level: _Level, target_level: _Level) -> tuple[Ints, Ints]:
    """Go from overlapping pairs of nodes to the overlapping pairs of their children."""
    # Every target child of every pair, with the source node that its sources are children of.
    first = np.searchsorted(target_level.parent, target, side="left")
    count = np.searchsorted(target_level.parent, target, side="right") - first
    child = spans(first, count)
    parent = np.repeat(source, count)
    # Source children of one parent are sorted by start, so those that begin before the target's end are a prefix; and
    # the running maximum of ends is sorted too, so those that all end before the target's start are one as well.
    span = int(max(source_level.end.max(initial=0), target_level.end.max(initial=0))) + 1
    starts = source_level.parent * span + source_level.start
    ends = np.maximum.accumulate(source_level.parent * span + source_level.end)
    low = np.searchsorted(ends, parent * span + target_level.start[child], side="right")
    high = np.searchsorted(starts, parent * span + target_level.end[child], side="left")
    count = np.maximum(high - low, 0)
    candidates = spans(low, count)
    child = np.repeat(child, count)
    overlap = source_level.end[candidates] > target_level.start[child]
    return candidates[overlap], child[overlap]
