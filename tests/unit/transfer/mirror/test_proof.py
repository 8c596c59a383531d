"""Digests of every box, on both sides after the same number of steps, prove a mirror or have it dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Replica, TrainedBox
from liver_slurm.reshard.mirrors import Difference
from liver_slurm.reshard.shard_spec import GroupSpec
from liver_slurm.reshard.tensors import Piece
from liver_slurm.transfer.mirror.proof import Proofs, compare, digests_of, encode
from liver_slurm.transfer.mirror.snapshot import tensors_of
from liver_slurm.transfer.multilinear import multilinear

SHAPES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4)


def replica(shapes: list[tuple[int, int]], number: int = 0) -> Replica:
    """Boxes whose views are slices of larger tensors, and a weight that is not trained."""
    values = torch.Generator().manual_seed(number)

    def view(shape: tuple[int, int]) -> torch.Tensor:
        return torch.randn(shape[0], shape[1] + 2, generator=values)[:, 1:-1]

    def box(index: int, shape: tuple[int, int]) -> TrainedBox:
        place = Piece(f"w{index}", (0, 0), shape)
        return TrainedBox(place, (view(shape), view(shape), view(shape)), lambda: torch.empty(0), GroupSpec())

    return Replica([box(*each) for each in enumerate(shapes)], [(Piece("frozen", (0,), (3,)), torch.ones(3))])


def in_one_run(of: Replica) -> Replica:
    """The same state in other memory, each tensor contiguous."""
    boxes = [
        TrainedBox(box.piece, tuple(view.clone().contiguous() for view in box.state), box.gradient, box.group)
        for box in of.trained
    ]
    return Replica(boxes, [(piece, view.clone()) for piece, view in of.fixed])


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 2**16), st.data())
def test_any_one_bit_is_found_and_named_and_nothing_else_is(
    shapes: list[tuple[int, int]], number: int, data: st.DataObject
) -> None:
    ours = replica(shapes, number)
    theirs = in_one_run(ours)
    expected = digests_of(ours)
    assert compare(theirs, expected) == (), "where it lies, and how, makes no difference"
    index = data.draw(st.integers(0, len(shapes)))
    if index < len(shapes):
        views = theirs.trained[index].state
        view, name = views[data.draw(st.integers(0, 2))], f"w{index}"
    else:
        view, name = theirs.fixed[0][1], "frozen"
    at = data.draw(st.integers(0, view.nbytes - 1))
    view.view(-1).view(torch.uint8)[at] ^= 1 << data.draw(st.integers(0, 7))
    assert compare(theirs, expected) == (name,)


def test_moments_that_changed_places_are_found() -> None:
    ours = replica([(2, 3)])
    theirs = in_one_run(ours)
    box = theirs.trained[0]
    box.state[1].copy_(ours.trained[0].state[2])
    box.state[2].copy_(ours.trained[0].state[1])
    assert compare(theirs, digests_of(ours)) == ("w0",)


def test_a_difference_names_some_of_many_boxes() -> None:
    many = replica([(1, 1)] * 20)
    assert compare(many, encode("xxh3", [0] * 61)) == tuple(f"w{index}" for index in range(8))


@pytest.mark.parametrize(
    ("digests", "why"),
    [
        (b"", "another number of tensors than 4"),
        (bytes(8 * 4), "another number of tensors than 4"),
        (b"\x02" + bytes(8 * 5 - 1), "a kind that is not known"),
    ],
)
def test_what_is_no_digests_of_these_boxes_is_refused(digests: bytes, why: str) -> None:
    with pytest.raises(TransferError, match=f"digests came of {why}"):
        compare(replica([(1, 1)]), digests)


def test_digests_of_a_card_are_compared_in_host_memory_too() -> None:
    ours = replica([(2, 3), (1, 4)])
    expected = encode("mix", [multilinear(view) for view in tensors_of(ours)])
    theirs = in_one_run(ours)
    assert compare(theirs, expected) == ()
    theirs.trained[1].state[1][0, 3] += 1
    assert compare(theirs, expected) == ("w1",)


def test_proofs_are_counted_and_the_last_difference_is_kept(caplog: Any) -> None:
    proofs = Proofs()
    assert (proofs.counts, proofs.last) == ((0, 0), None)
    proofs.note("live-1", 20, ())
    proofs.note("live-1", 40, ("w0", "w3"))
    proofs.note("live-1", 41, ())
    assert (proofs.counts, proofs.last) == ((3, 1), Difference("live-1", 40, ("w0", "w3")))
    assert "the mirror of live-1 is not what that has after 40 steps, and is dropped: w0, w3" in caplog.text
