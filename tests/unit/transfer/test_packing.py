"""How boxes travel: both ends come to the same messages, whatever their storage looks like."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.transfer.packing import ALIGNMENT, LARGE, Packed, lay_out

CPU = torch.device("cpu")
WIDE = LARGE // 64
"""Columns of which a few rows of fp32 are a large box."""
shapes = st.one_of(st.tuples(st.integers(1, 3), st.integers(1, 9)), st.tuples(st.integers(15, 18), st.just(WIDE)))
boxes = st.lists(
    st.tuples(shapes, st.sampled_from([torch.float32, torch.bfloat16, torch.uint8])), min_size=1, max_size=6
)


def storage(shape: tuple[int, int], dtype: torch.dtype, strided: bool) -> torch.Tensor:
    rows, columns = shape
    return torch.zeros(rows, columns + strided, dtype=dtype)[:, :columns]


def room(found: list[torch.Tensor]) -> int:
    return sum(view.nbytes + ALIGNMENT for view in found)


def packed(views: list[torch.Tensor], taken: list[torch.Tensor]) -> Packed:
    def take() -> torch.Tensor:
        taken.append(torch.empty(room(views), dtype=torch.uint8))
        return taken[-1]

    return lay_out(views, CPU, take)


@given(boxes, st.data())
def test_what_is_packed_at_one_end_is_unpacked_at_the_other(
    kinds: list[tuple[tuple[int, int], torch.dtype]], data: st.DataObject
) -> None:
    source, target = (
        [storage(shape, dtype, data.draw(st.booleans())) for shape, dtype in kinds] for _ in ("source", "target")
    )
    for number, view in enumerate(source):
        view.copy_(torch.arange(math.prod(view.shape)).view(view.shape) % 50 + number)
    taken: list[torch.Tensor] = []
    here, there = packed(source, taken), packed(target, taken)

    here.pack()
    assert [len(message) for message in here.messages] == [len(message) for message in there.messages]
    for sent, received in zip(here.messages, there.messages, strict=True):
        received.copy_(sent)
    there.unpack()

    assert all(torch.equal(one, other) for one, other in zip(source, target, strict=True))


def test_a_large_box_in_one_piece_is_not_staged() -> None:
    view = storage((32, WIDE), torch.float32, strided=False)
    taken: list[torch.Tensor] = []
    found = packed([view], taken)
    assert not taken
    assert [message.data_ptr() for message in found.messages] == [view.data_ptr()]


def test_small_boxes_are_one_message() -> None:
    found = packed([storage((2, 3), torch.float32, strided) for strided in (False, True, False)], [])
    assert len(found.messages) == 1
