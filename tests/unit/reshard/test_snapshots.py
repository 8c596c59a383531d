"""The step that a broken world's snapshots take it back to: the newest one that all state can be had at."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.reshard.snapshots import Kept, Survivor, newest_common


def copies(*steps: int, of: str) -> list[Kept]:
    return [Kept((of,), steps)]


def test_all_go_back_to_the_last_snapshot() -> None:
    left = [Survivor("a", 17, (12,), copies(6, 12, of="b")), Survivor("c", 17, (12,), copies(6, 12, of="a"))]
    assert newest_common(left, ["b"]) == (12, {"b": "a"})


def test_one_whose_live_state_is_of_that_step_needs_none() -> None:
    """It has died before the others could put theirs by; all keepers have what they were sent."""
    left = [Survivor("a", 12, (6,), copies(6, 12, of="b")), Survivor("c", 12, (12,), [])]
    assert newest_common(left, ["b"]) == (12, {"b": "a"})


def test_a_snapshot_that_had_not_come_is_not_waited_for() -> None:
    left = [Survivor("a", 12, (6,), copies(6, of="b")), Survivor("c", 12, (6,), [])]
    assert newest_common(left, ["b"]) == (6, {"b": "a"})


def test_a_torn_state_is_none() -> None:
    assert newest_common([Survivor("a", -1, (6,), []), Survivor("b", 12, (6,), [])], []) == (6, {})
    assert newest_common([Survivor("a", -1, (), []), Survivor("b", 12, (6,), [])], []) is None


def test_what_nobody_keeps_is_gone() -> None:
    assert newest_common([Survivor("a", 17, (12,), copies(12, of="c")), Survivor("c", 17, (12,), [])], ["b"]) is None
    assert newest_common([], ["b"]) is None


def test_of_a_group_all_others_must_have_theirs() -> None:
    keeper = Survivor("k", 9, (8,), [Kept(("a", "b", "c"), (4, 8))])
    a, b = Survivor("a", 9, (8,), []), Survivor("b", 8, (4,), [])
    assert newest_common([keeper, a, b], ["c"]) == (8, {"c": "k"})
    assert newest_common([keeper, a], ["b", "c"]) is None, "two of a group are too many"


names = st.sampled_from("abcd")
steps = st.sampled_from([-1, 0, 4, 8])
kept = st.builds(Kept, st.lists(names, min_size=1, max_size=3, unique=True).map(tuple), st.lists(steps).map(tuple))


@given(
    st.lists(
        st.builds(Survivor, names, steps, st.sets(steps), st.lists(kept, max_size=2)), unique_by=lambda one: one.name
    ),
    st.sets(names),
)
def test_what_it_says_can_be_had(left: list[Survivor], gone: set[str]) -> None:
    left = [one for one in left if one.name not in gone]
    found = newest_common(left, gone)
    if found is None:
        return
    step, keepers = found
    assert step >= 0
    assert set(keepers) == gone
    assert all(step == one.live or step in one.own for one in left)
    for name, keeper in keepers.items():
        holder = next(one for one in left if one.name == keeper)
        assert any(
            name in each.owners and step in each.steps and not (set(each.owners) - {name}) & gone
            for each in holder.kept
        )
