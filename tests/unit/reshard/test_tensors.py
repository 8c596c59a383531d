from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.reshard.slicing import cut
from liver_slurm.reshard.tensors import Piece, flat_boxes, inside, state_tensors

shapes = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


@given(shapes, st.data())
def test_flat_boxes_cover_the_range_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    size = math.prod(shape)
    start = data.draw(st.integers(0, size))
    end = data.draw(st.integers(start, size))
    whole = np.arange(size).reshape(shape)
    boxes = list(flat_boxes(shape, start, end))
    parts = [whole[tuple(slice(a, a + n) for a, n in zip(*box, strict=True))].ravel() for box in boxes]
    assert np.concatenate([np.zeros(0, int), *parts]).tolist() == list(range(start, end))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)
    assert all(len(box[0]) == len(box[1]) == len(shape) for box in boxes)


@given(st.integers(1, 4), st.data())
def test_whole_tables_are_cut_as_single_ranges_are(axes: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(*[st.integers(1, 5)] * axes), max_size=6))
    starts = [data.draw(st.integers(0, math.prod(shape))) for shape in rows]
    ends = [data.draw(st.integers(start, math.prod(shape))) for start, shape in zip(starts, rows, strict=True)]
    row, offset, shape = cut(
        np.array(rows, np.int64).reshape(-1, axes), np.array(starts, np.int64), np.array(ends, np.int64)
    )
    found = sorted(zip(row.tolist(), map(tuple, offset.tolist()), map(tuple, shape.tolist()), strict=True))
    assert found == [
        (index, *box)
        for index, (shape, start, end) in enumerate(zip(rows, starts, ends, strict=True))
        for box in flat_boxes(shape, start, end)
    ]


def test_state_tensors() -> None:
    assert state_tensors("w", "float32") == ("w@exp_avg", "w@exp_avg_sq")
    assert state_tensors("w", "bfloat16") == ("w@master", "w@exp_avg", "w@exp_avg_sq")


def test_inside() -> None:
    piece = Piece("w", (2, 0), (4, 3))
    assert inside((3, 1), (2, 2), piece) == (slice(1, 3), slice(1, 3))
    assert inside((1, 1), (2, 2), piece) is None
    assert inside((3, 1), (2, 3), piece) is None
