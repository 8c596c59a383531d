"""A table that is never changed, beside a dictionary that is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.base.table import SHARD, Table


@given(st.lists(st.tuples(st.integers(0, 2 * SHARD), st.sampled_from(["put", "put", "put", "without"])), max_size=400))
def test_it_is_a_dictionary_whose_past_stays(changes: list[tuple[int, str]]) -> None:
    table, known = Table[int](), dict[str, int]()
    past = []
    for at, (number, change) in enumerate(changes):
        name = str(number)
        if change == "put":
            table, known = table.put(name, at), {**known, name: at}
        else:
            table, known = table.without(name), {other: value for other, value in known.items() if other != name}
        past.append((table, known))
    for table, known in past[::20]:
        assert list(table.items()) == list(known.items()), "in their order, whatever came later"
        assert (len(table), "1" in table, table.get("1")) == (len(known), "1" in known, known.get("1"))


@given(
    st.lists(st.integers(0, 3 * SHARD), max_size=300),
    st.lists(st.tuples(st.integers(0, 3 * SHARD), st.sampled_from(["put", "put", "put", "without"])), max_size=40),
)
def test_what_is_different_is_told(first: list[int], changes: list[tuple[int, str]]) -> None:
    before = Table((str(name), f"before {name}") for name in dict.fromkeys(first))
    after = before
    for at, (number, change) in enumerate(changes):
        after = after.put(str(number), str(at)) if change == "put" else after.without(str(number))
    told = dict(after.differing(before))
    different = {name: value for name, value in after.items() if before.get(name) is not value}
    assert different.items() <= told.items()
    assert told.items() <= after.items()
    if all(change == "put" for _, change in changes):
        assert told == different, "and nothing else, where none has gone"
