"""Answers as they come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.base.tally import Tally


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_each_is_a_dictionary_whatever_grows_out_of_it(steps: list[tuple[int, int]]) -> None:
    known: list[tuple[Tally[int], dict[str, int]]] = [(Tally(), {})]
    for at, number in steps:
        tally, same = known[at % len(known)]
        name = f"worker-{number}"
        if name in same:
            with pytest.raises(ValueError, match=f"{name} has answered already"):
                tally.plus(name, at)
        else:
            known.append((tally.plus(name, at), {**same, name: at}))
    for tally, same in known:
        assert list(tally.items()) == list(same.items())
        assert (len(tally), tally.get("worker-3"), "worker-3" in tally) == (
            len(same), same.get("worker-3"), "worker-3" in same,
        )  # fmt: skip
        assert tally == same
        assert repr(tally) == repr(same)
    assert Tally([("a", 1)]) == {"a": 1}


def test_thousands_of_answers_share_one_dictionary() -> None:
    tally: Tally[None] = Tally()
    for number in range(5000):
        tally = tally.plus(str(number), None)
    assert len(tally) == len(tally._all) == 5000
    with pytest.raises(KeyError):
        Tally[int]()["a"]
