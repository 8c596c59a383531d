from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.reshard.peers import Peers

worlds = st.permutations("abcdefgh").flatmap(lambda names: st.integers(0, 8).map(lambda size: names[:size]))


def test_peers() -> None:
    peers = Peers.of(["a", "b", "c"], ["d", "c", "a"])
    assert peers == Peers(["a", "b", "c", "d"], [0, 1, 2], [3, 2, 0], [None, 2, 0])


def test_peers_of_a_world_that_has_lost_members() -> None:
    peers = Peers.of(["a", "b", "c"], ["d", "c"], {"a"})
    assert peers == Peers(["b", "c", "d"], [0, 0, 1], [2, 1], [None, 2])


@given(worlds, worlds)
def test_peers_are_found_under_their_numbers(source: list[str], target: list[str]) -> None:
    peers = Peers.of(source, target)
    assert sorted(peers.names) == sorted({*source, *target})
    assert [peers.names[number] for number in peers.source] == source
    assert [peers.names[number] for number in peers.target] == target
    assert peers.keep == [source.index(member) if member in source else None for member in target]
