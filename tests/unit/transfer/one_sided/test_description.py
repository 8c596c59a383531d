"""What a peer says of its memory is believed only as far as it can be true."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.transfer.one_sided.description import (
    BoxDescription,
    Description,
    Proof,
    Refusal,
    Region,
    View,
    check,
    decode,
    own_proof,
    view_of,
)

BOX = torch.zeros(3, 4, 5)


def description(**changes: Any) -> Description:
    views = tuple(view_of(BOX[n].T) for n in range(3))
    told = Description(
        machine="here",
        pid=1,
        proof=own_proof(),
        regions=[Region(BOX.data_ptr(), BOX.nbytes, b"h" * 64)],
        counter=view_of(torch.zeros(1, dtype=torch.int64)),
        boxes=[BoxDescription(views, view_of(BOX[0].T)), BoxDescription((view_of(BOX),), None)],
    )
    return msgspec.structs.replace(told, **changes)


def test_it_says_what_torch_says() -> None:
    told = description()
    assert decode(msgspec.msgpack.encode(told)) == told
    first = told.boxes[0].state[1]
    assert (first.address, first.shape, first.strides) == (BOX[1].data_ptr(), (5, 4), (1, 5))
    assert first.end == BOX[2].data_ptr()
    assert view_of(BOX[:0]).end == view_of(BOX[:0]).address


@given(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4))
def test_a_part_of_a_view_lies_where_torch_says(axis: int, begin: int, count: int) -> None:
    begin, count = min(begin, BOX.shape[axis]), min(count, BOX.shape[axis] - min(begin, BOX.shape[axis]))
    found, expected = view_of(BOX).narrow(axis, begin, count), view_of(BOX.narrow(axis, begin, count))
    assert (found.address, found.shape, found.strides) == (
        expected.address,
        expected.shape,
        expected.strides,
    ) or not count


def test_a_part_knows_which_elements_it_is() -> None:
    numbers = torch.arange(BOX.numel()).view(BOX.shape)
    whole = msgspec.structs.replace(view_of(BOX), number=7)
    part, rows = whole, numbers
    for axis, begin, count in ((0, 1, 2), (0, 1, 1), (1, 2, 2), (1, 1, 1), (2, 1, 3)):
        part, rows = part.narrow(axis, begin, count), rows.narrow(axis, begin, count)
        assert (part.number, part.first, part.first + rows.numel() - 1) == (7, int(rows.min()), int(rows.max()))


# ---- untrue ones ---------------------------------------------------------------------------------------------------


def changed(told: Any, path: tuple[Any, ...], value: Any) -> bytes:
    tree = copy.deepcopy(msgspec.msgpack.decode(msgspec.msgpack.encode(told)))
    place = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return msgspec.msgpack.encode(tree)


HUGE = (1 << 63) - 1
UNTRUE = {
    "negative address": (("boxes", 0, 0, 0, 0), -8),
    "address beyond the address space": (("boxes", 0, 0, 0, 0), HUGE),
    "negative size": (("boxes", 0, 0, 0, 1), [-5, 4]),
    "huge size": (("boxes", 0, 0, 0, 1), [1 << 61, 4]),
    "sizes without end": (("boxes", 0, 0, 0, 1), [1] * 1000),
    "negative stride": (("boxes", 0, 0, 0, 2), [1, -5]),
    "huge stride": (("boxes", 0, 0, 0, 2), [1 << 61, 1]),
    "too few strides": (("boxes", 0, 0, 0, 2), [1]),
    "unknown type": (("boxes", 0, 0, 0, 3), "complex64"),
    "no type of torch's": (("boxes", 0, 1, 3), "__class__"),
    "gradient that is none": (("boxes", 0, 1), "here"),
    "counter of bytes": (("counter", 3), "float32"),
    "several counters": (("counter", 1), [2]),
    "proof of nothing": (("proof", 1), b""),
    "proof at a negative address": (("proof", 0), -1),
    "region of negative size": (("regions", 0, 1), -1),
    "boxes that are none": (("boxes",), 7),
    "number that is none": (("pid",), "1"),
}


@pytest.mark.parametrize("what", UNTRUE)
def test_what_cannot_be_is_refused(what: str) -> None:
    # LS-32
    with pytest.raises(Refusal):
        decode(changed(description(), *UNTRUE[what]))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_bytes_that_mean_nothing_are_refused(data: bytes) -> None:
    # LS-32
    with pytest.raises(Refusal, match="its description cannot be understood"):
        decode(data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_another_byte_is_refused_or_means_possible_memory(data: st.DataObject) -> None:
    # LS-32
    sent = bytearray(msgspec.msgpack.encode(description()))
    for _ in range(data.draw(st.integers(1, 3))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    try:
        told = decode(bytes(sent))
    except Refusal:
        return
    for box in told.boxes:
        for view in box.state:
            assert 0 <= view.address <= view.end < 1 << 62


def test_an_owner_that_refuses_or_is_elsewhere() -> None:
    check(description(), "here")
    with pytest.raises(Refusal, match="it is on another machine"):
        check(description(), "there")
    with pytest.raises(Refusal, match="because"):
        check(description(refused="because"), "here")


def test_the_proof_is_what_lies_there() -> None:
    proof = own_proof()
    assert isinstance(proof, Proof)
    assert own_proof() == proof
    assert View(proof.address, (16,), (1,), "float32").itemsize == 4
