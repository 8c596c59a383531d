"""Cutting a bucket of weights into segments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.engine.megatron.gather import segments


@given(share=st.integers(1, 5_000_000), replicas=st.integers(1, 9))
def test_every_element_is_sent_once_by_its_owner(share: int, replicas: int) -> None:
    found = list(segments(share * replicas, replicas))
    assert [begin for begin, _, _ in found] == [0, *(end for _, end, _ in found[::-1])][:-1][::-1]
    assert found[0][1] == share * replicas
    assert all(owner * share <= begin < end <= (owner + 1) * share for begin, end, owner in found)
