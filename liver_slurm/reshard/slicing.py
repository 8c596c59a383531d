"""Flat ranges of many boxes cut into boxes at once: :func:`liver_slurm.reshard.tensors.flat_boxes` for whole tables."""

from __future__ import annotations

import numpy as np

from liver_slurm.reshard.rank_sets import Ints


def cut(shape: Ints, start: Ints, end: Ints) -> tuple[Ints, Ints, Ints]:
    """Cut the elements ``[start, end)`` of each box, counted in row-major order, into boxes.

    Args:
        shape: of the boxes, [n, axes].
        start, end: of the ranges, [n], inside their boxes.

    Returns:
        For each part: the row it is of, its offset inside that row's box [m, axes], and its shape [m, axes]; in no
        particular order.
    """
    axes = shape.shape[1]
    # Elements of one step along each axis.
    inner = np.ones_like(shape)
    for axis in range(axes - 2, -1, -1):
        inner[:, axis] = inner[:, axis + 1] * shape[:, axis + 1]
    row = np.flatnonzero(start < end)
    start, end = start[row], end[row]
    prefix = np.zeros((len(row), axes), dtype=np.int64)
    rows: list[Ints] = []
    offsets: list[Ints] = []
    shapes: list[Ints] = []
    for axis in range(axes):
        step = inner[row, axis]
        first, last = -(-start // step), end // step
        # A whole number of steps in the middle is one box.
        whole = first < last
        offset, extent = prefix[whole].copy(), shape[row[whole]].copy()
        offset[:, axis], extent[:, :axis], extent[:, axis] = first[whole], 1, (last - first)[whole]
        rows.append(row[whole])
        offsets.append(offset)
        shapes.append(extent)
        # What is left lies inside single steps: before the first whole one, after the last, or in one altogether.
        head = (start % step > 0) & (first <= last)
        tail = (end % step > 0) & (first <= last)
        inside = first > last
        pieces = [
            (head, start // step, start % step, step),
            (tail, last, np.zeros_like(end), end % step),
            (inside, last, start % step, end % step),
        ]
        chosen = [np.flatnonzero(mask) for mask, *_ in pieces]
        prefix = np.concatenate([prefix[at] for at in chosen])
        prefix[:, axis] = np.concatenate([index[at] for at, (_, index, _, _) in zip(chosen, pieces, strict=True)])
        start, end = (
            np.concatenate([piece[field][at] for at, piece in zip(chosen, pieces, strict=True)]) for field in (2, 3)
        )
        row = np.concatenate([row[at] for at in chosen])
    return np.concatenate(rows), np.concatenate(offsets), np.concatenate(shapes)
