"""What is no tensor travels as the bytes of one."""

from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.base.errors import RunIsOver
from liver_slurm.engine.own_loop.plain_state import ROOM, pack, unpack

_plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.integers(0, 9) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=9,
)


@given(st.dictionaries(st.text(max_size=5), _plain, max_size=3))
def test_it_comes_back_as_it_was(state: dict[str, object]) -> None:
    packed = torch.full((ROOM,), 7, dtype=torch.uint8)
    pack(state, packed)
    assert unpack(packed) == state


def test_a_number_that_is_none_comes_back_too() -> None:
    packed = torch.zeros(ROOM, dtype=torch.uint8)
    pack({"scaler": {"scale": math.nan}}, packed)
    assert math.isnan(unpack(packed)["scaler"]["scale"])


def test_what_has_no_room_is_refused() -> None:
    packed = torch.zeros(ROOM, dtype=torch.uint8)
    with pytest.raises(RunIsOver, match=r"^the state of history takes \d+ bytes; allowed: 65528 in all$"):
        pack({"history": os.urandom(ROOM).hex()}, packed)


def test_many_counters_of_one_value_have_room() -> None:
    packed = torch.zeros(ROOM, dtype=torch.uint8)
    state = {"optimizer": {"state": [{"step": 12345.0}] * 100_000}}
    pack(state, packed)
    assert unpack(packed) == state
