"""Who keeps parity of whose snapshots, and when."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.reshard.parity import EVERY, Choice, Means, choose, groups, largest_group, takes

some_hosts = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=2, max_size=12)
GB = 1 << 30


@given(some_hosts, st.data())
def test_each_rank_is_in_one_group_that_another_keeps(hosts: list[str], data: st.DataObject) -> None:
    most = data.draw(st.integers(1, len(hosts) - 1))
    found = groups(hosts, most)
    assert sorted(rank for group in found for rank in group.owners) == list(range(len(hosts)))
    for group in found:
        assert 1 <= len(group.owners) <= most
        assert group.keeper not in group.owners
        if len(set(hosts)) > 1:
            assert len({hosts[rank] for rank in group.owners}) == len(group.owners), "of a host one at most"


@given(st.integers(2, 6), st.integers(1, 4), st.data())
def test_a_host_that_fails_takes_one_of_a_group_or_its_keeper(several: int, ranks: int, data: st.DataObject) -> None:
    hosts = [f"n{host}" for host in range(several) for _ in range(ranks)]
    most = data.draw(st.integers(1, largest_group(hosts)))
    found = groups(hosts, most)
    for group in found:
        members = [hosts[rank] for rank in (*group.owners, group.keeper)]
        assert len(set(members)) == len(members)
    loads = Counter(group.keeper for group in found)
    assert max(loads.values()) <= 1 + len(found) // len(hosts), "nobody keeps two while another keeps none"


def test_groups_are_as_even_as_they_can_be() -> None:
    hosts = [f"n{host}" for host in range(9)]
    assert sorted(len(group.owners) for group in groups(hosts, 4)) == [3, 3, 3]
    assert largest_group(hosts) == 8
    assert largest_group(["a"] * 4) == 3
    assert largest_group(["a", "b"]) == 1, "there is nobody on a third host"


def test_parity_takes_a_part_of_what_copies_take() -> None:
    hosts, states = [f"n{host}" for host in range(9)], [12 * GB] * 9
    assert takes(Choice("updates", 1, 0, ""), states, groups(hosts, 1)) == [20 * GB] * 9
    assert takes(Choice("copies", 1, 9, "", beside=True), states, groups(hosts, 1)) == [48 * GB] * 9
    in_one = takes(Choice("copies", 1, 1, "", beside=True), states, groups(hosts, 1), ["n0"] * 9)
    assert in_one == [24 * GB] * 9, "the keeper only maps what its owner has put by"
    of_eight = takes(Choice("parity", 8, 9, ""), states, groups(hosts, 8))
    assert sorted(of_eight) == [12 * GB] * 7 + [36 * GB] * 2
    assert sum(takes(Choice("parity", 3, 9, ""), states, groups(hosts, 3))) == (9 * 12 + 3 * 24) * GB
    assert sum(takes(Choice("parity", 3, 9, "", beside=True), states, groups(hosts, 3))) == (9 * 24 + 3 * 24) * GB


def world(hosts: int, ranks: int, available: int) -> tuple[list[Means], list[str]]:
    names = [f"n{host}" for host in range(hosts) for _ in range(ranks)]
    return [Means(name, available, 12 * GB) for name in names], names


@pytest.mark.parametrize(
    ("available", "every", "group", "chosen"),
    [
        (400, 0, 0, ("updates", 1, 0)),
        (2 * 384, 20, 0, ("copies", 1, 20)),
        (2 * 160, 0, 0, ("updates", 1, 0)),
        (2 * 159, 0, 0, ("parity", 4, EVERY)),
        (2 * 200, 20, 0, ("parity", 2, 20)),
        (2 * 144, 0, 0, ("parity", 4, EVERY)),
        (2 * 143, 0, 0, ("none", 0, 0)),
        (2 * 95, 0, 0, ("none", 0, 0)),
        (2 * 95, 0, 1, ("updates", 1, 0)),
        (2 * 95, 9, 1, ("copies", 1, 9)),
        (2 * 95, 9, 3, ("parity", 3, 9)),
        (2 * 95, 9, 30, ("parity", 7, 9)),
    ],
)
def test_the_memory_there_is_decides(available: int, every: int, group: int, chosen: tuple[str, int, int]) -> None:
    """Eight hosts of eight ranks, of 12 GiB each."""
    ranks, hosts = world(8, 8, available * GB)
    found = choose(ranks, hosts, every, group)
    assert (found.kind, found.group, found.every) == chosen


def test_the_reason_says_what_did_not_fit() -> None:
    assert choose(*world(5, 4, 2 * 72 * GB)).reason == (
        f"copies take {80 * GB} bytes on n0, which has {144 * GB} to spare; parities of 4 have room"
    )
    assert choose(*world(8, 1, 400 * GB)).reason == "there is room"
    assert choose(*world(8, 1, GB)).reason.startswith(f"copies take {20 * GB} bytes on n0, which has {GB} to spare; ")
    assert choose(*world(3, 1, GB), every=5, group=7).reason == (
        "2 owners a mirror, of 7 that recovery.mirror_group asks for, as there are 3 places"
    )


@given(some_hosts, st.integers(1, 100), st.integers(0, 9), st.integers(0, 9), st.data())
def test_what_is_chosen_fits(hosts: list[str], available: int, every: int, group: int, data: st.DataObject) -> None:
    states = data.draw(st.lists(st.integers(0, 40), min_size=len(hosts), max_size=len(hosts)))
    ranks = [Means(host, available, state) for host, state in zip(hosts, states, strict=True)]
    found = choose(ranks, hosts, every, group)
    if found.kind == "none":
        assert not group
        return
    assert found.group < len(hosts)
    assert (found.every == 0) == (found.kind == "updates")
    if not group:
        needed = takes(found, states, groups(hosts, found.group), hosts)
        for host in set(hosts):
            assert 2 * sum(n for n, name in zip(needed, hosts, strict=True) if name == host) <= available


def test_a_machine_that_is_several_hosts_has_its_memory_once() -> None:
    hosts = ["n0", "n1", "n2"]
    assert choose([Means("one", 120, 12)] * 3, hosts) == Choice("updates", 1, 0, "there is room")
    assert choose([Means("one", 119, 12)] * 3, hosts).kind == "none"
