from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.state.pieces import flat_boxes, intersect, state_tensors

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


def test_intersect() -> None:
    assert intersect((0, 2), (4, 4), (2, 0), (4, 3)) == ((2, 2), (2, 1))
    assert intersect((0,), (2,), (2,), (2,)) is None


def test_state_tensors() -> None:
    assert state_tensors("w", "float32") == ("w@exp_avg", "w@exp_avg_sq")
    assert state_tensors("w", "bfloat16") == ("w@master", "w@exp_avg", "w@exp_avg_sq")
