"""Workers find out which of them can read whose memory; whatever they say, all of them come to an end."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from liver_slurm.transfer.one_sided import handshake
from liver_slurm.transfer.one_sided.description import Refusal
from liver_slurm.transfer.one_sided.handshake import Agreement, agree
from liver_slurm.transfer.shared_box import SharedBox

PATIENCE = 120.0
Graph = dict[tuple[int, int], int]
"""How many boxes go from one worker to another."""


class Elsewhere(threading.local):
    """Which machine the calling thread is on."""

    name = "here"


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], Graph]:
    """Workers on up to three machines, and what moves between them."""
    machines = draw(st.lists(st.sampled_from(["here", "there", "yonder"]), min_size=1, max_size=5))
    places = range(len(machines))
    pairs = [(one, other) for one in places for other in places if one != other]
    moving = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return machines, {pair: draw(st.integers(1, 3)) for pair in moving}


def box(seed: int) -> SharedBox:
    values = torch.Generator().manual_seed(seed)
    state = tuple(torch.randn(3, 4, generator=values) for _ in range(3))
    return SharedBox(state, torch.randn(3, 4, generator=values))


def all_agree(
    monkeypatch: pytest.MonkeyPatch, machines: list[str], graph: Graph, held: dict[tuple[int, int], list[SharedBox]]
) -> list[Agreement]:
    """Every worker in a thread of its own."""
    store, place = dist.HashStore(), Elsewhere()
    monkeypatch.setattr(handshake, "machine", lambda: place.name)

    def worker(me: int) -> Agreement:
        place.name = machines[me]
        outgoing = {to: held[origin, to] for origin, to in graph if origin == me}
        incoming = {
            origin: [SharedBox((torch.zeros(3, 4),))] * count for (origin, to), count in graph.items() if to == me
        }
        counter = torch.tensor([2 * me], dtype=torch.int64)
        counters.append(counter)
        return agree(store, me, len(machines), outgoing, incoming, counter)

    counters: list[torch.Tensor] = []
    with ThreadPoolExecutor(len(machines)) as pool:
        agreed = [each.result(PATIENCE) for each in [pool.submit(worker, me) for me in range(len(machines))]]
        for me, found in enumerate(agreed):
            for peer, (_, reader) in found.readers.items():
                assert reader.counter() == 2 * peer, f"{me} reads {peer}'s own"
    return agreed


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_pairs_of_one_machine_read_and_all_others_send(case: tuple[list[str], Graph]) -> None:
    machines, graph = case
    held = {pair: [box(7 * pair[0] + pair[1] + n) for n in range(count)] for pair, count in graph.items()}
    with pytest.MonkeyPatch.context() as monkeypatch:
        agreed = all_agree(monkeypatch, machines, graph, held)
    near = {pair for pair in graph if machines[pair[0]] == machines[pair[1]]}
    for me, found in enumerate(agreed):
        assert set(found.readers) == {origin for origin, to in near if to == me}
        assert found.read_by == {to for origin, to in near if origin == me}
        assert found.everywhere == (near == set(graph))
        for peer, (owner, reader) in found.readers.items():
            for described, kept in zip(owner.boxes, held[peer, me], strict=True):
                arrived = reader.fetch(described.state)
                assert all(torch.equal(*pair) for pair in zip(arrived, kept.state, strict=True))


def test_an_owner_that_does_not_let_itself_be_read_sends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # LS-32
    def refuse() -> None:
        raise Refusal("prctl(PR_SET_PTRACER): Operation not permitted")

    monkeypatch.setattr(handshake, "let_others_read", refuse)
    caplog.set_level(logging.INFO, handshake.__name__)
    first, second = all_agree(monkeypatch, ["here"] * 2, {(0, 1): 1}, {(0, 1): [box(0)]})
    assert (dict(second.readers), first.read_by) == ({}, frozenset())
    assert not first.everywhere
    assert not second.everywhere
    assert "state comes from worker 0 in messages: prctl(PR_SET_PTRACER): Operation not permitted" in caplog.messages


def _with(**changes: Any) -> Any:
    return lambda told: msgspec.msgpack.encode({**msgspec.msgpack.decode(told), **changes})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda told: b"",
        lambda told: told[:-1],
        _with(boxes=[[[[8, [1], [-1], "float32"]], None]]),
        _with(counter=[8, [1 << 40], [1], "int64"]),
        _with(pid=0),
        _with(pid=-1),
        _with(proof=None),
        _with(proof=[8, b"0123456789abcdef"]),
    ],
    ids=["nothing", "cut", "stride", "counter", "pid 0", "pid -1", "no proof", "proof elsewhere"],
)
def test_a_description_that_cannot_be_used_is_answered(monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    # LS-32
    class Spoiling:
        """The store of a peer that says something else."""

        def __init__(self, store: Any) -> None:
            self._store = store

        def get(self, key: str) -> bytes:
            said: bytes = self._store.get(key)
            return bytes(spoil(said)) if key.startswith("boxes/") else said

        def __getattr__(self, name: str) -> Any:
            return getattr(self._store, name)

    make = dist.HashStore
    monkeypatch.setattr(dist, "HashStore", lambda: Spoiling(make()))
    first, second = all_agree(monkeypatch, ["here"] * 2, {(0, 1): 1}, {(0, 1): [box(0)]})
    assert (dict(second.readers), first.read_by, first.everywhere) == ({}, frozenset(), False)
