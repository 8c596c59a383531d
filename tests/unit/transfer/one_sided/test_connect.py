"""Connections of a transfer: any workers, whatever moves between them, all get them, or give back what they opened."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from target_lab import at_once
from transfer_lab import Joined, Tensor, Trainer, join, stream

from liver_slurm.base.errors import BadInput, TransferError
from liver_slurm.transfer.one_sided import connect as module
from liver_slurm.transfer.one_sided import handshake
from liver_slurm.transfer.shared_box import SharedBox

PATIENCE = 120.0


class Place(threading.local):
    """Which machine the calling thread's worker is on."""

    name = "here"


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], list[Tensor]]:
    """Up to five workers on two machines, and tensors that go between any of them."""
    machines = draw(st.lists(st.sampled_from(["here", "there"]), min_size=1, max_size=5))
    number = st.integers(0, len(machines) - 1)
    ends = draw(st.lists(st.tuples(number, number), max_size=8))
    return machines, [
        Tensor(f"t{n}", (3, 2), source, target, draw(st.sampled_from([0, None])))
        for n, (source, target) in enumerate(ends)
    ]


@settings(max_examples=20, deadline=None)
@given(graphs())
def test_any_workers_connect_and_move_what_there_is(case: tuple[list[str], list[Tensor]]) -> None:
    # LS-3
    machines, tensors = case
    place, store = Place(), dist.HashStore()
    workers = len(machines)

    def move(me: int) -> Joined:
        place.name = machines[me]
        joined = join(store, Trainer(me, tensors, seed=me), workers, stream())
        joined.transfer.start()
        joined.transfer.attach()
        joined.transfer.open(last=True)
        joined.trainer.update()
        joined.transfer.finish()
        joined.transfer.prove()
        return joined

    with pytest.MonkeyPatch.context() as monkeypatch, ThreadPoolExecutor(workers) as pool:
        monkeypatch.setattr(handshake, "machine", lambda: place.name)
        found = [done.result(PATIENCE) for done in [pool.submit(move, me) for me in range(workers)]]
    moved = {(tensor.source, tensor.target) for tensor in tensors if tensor.source != tensor.target}
    assert {(peer, me): way for me, joined in enumerate(found) for peer, way in joined.connected.reads.items()} == {
        (one, other): "memory" if machines[one] == machines[other] else "network" for one, other in moved
    }
    for tensor in tensors:
        held = found[tensor.source].trainer.state(tensor.name)
        arrived = found[tensor.target].trainer.arrived[tensor.name]
        assert all(torch.equal(*pair) for pair in zip(arrived, held, strict=True))
    for joined in found:
        joined.transfer.close()


@pytest.mark.parametrize(
    ("transport", "ways"),
    [("auto", {"memory"}), ("gloo", {"memory"}), ("nccl", {"memory"}), ("shm", {"memory"}), ("tcp", {"network"})],
)
def test_each_transport_is_a_way_to_read(transport: Any, ways: set[str]) -> None:
    tensors, store = [Tensor("t", (3, 2), 0, 1)], dist.HashStore()

    def one(me: int) -> Joined:
        return join(store, Trainer(me, tensors), 2, stream(transport=transport))

    owner, receiver = at_once(lambda: one(0), lambda: one(1))
    assert set(owner.connected.read_by.values()) == set(receiver.connected.reads.values()) == ways
    at_once(owner.transfer.close, receiver.transfer.close)


def test_memory_alone_is_refused_on_all_workers_where_one_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    place, store, tensors = Place(), dist.HashStore(), [Tensor("t", (3, 2), 0, 1)]
    monkeypatch.setattr(handshake, "machine", lambda: place.name)

    def refused(me: int) -> str:
        place.name = "there" if me == 1 else "here"
        with pytest.raises(BadInput) as caught:
            join(store, Trainer(me, tensors), 3, stream(transport="shm"))
        return str(caught.value)

    said = at_once(*[lambda me=me: refused(me) for me in range(3)])
    assert set(said) == {
        "stream.transport is 'shm', but peer 0 cannot be read: it is on another machine; set it to 'auto'"
    }


def test_what_was_opened_is_closed_where_the_plan_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    # LS-27, LS-32
    tensors = [Tensor("t", (3, 2), 0, 1)]
    store, opened = dist.HashStore(), threading.Barrier(2)
    describe = module.describe

    def otherwise(*of: Any) -> Any:
        told = describe(*of)
        return msgspec.structs.replace(told, boxes=[])

    monkeypatch.setattr(module, "describe", otherwise)
    before = {thread.ident for thread in threading.enumerate()}

    def receiver() -> None:
        with pytest.raises(TransferError, match="a peer has 0 boxes where the plan says 1"):
            join(store, Trainer(1, tensors), 2, stream())
        opened.wait(PATIENCE)

    def owner() -> None:
        joined = join(store, Trainer(0, tensors), 2, stream())
        opened.wait(PATIENCE)
        joined.transfer.close()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(call) for call in (receiver, owner)]:
            done.result(PATIENCE)
    left = [thread for thread in threading.enumerate() if thread.ident not in before]
    assert [thread.name for thread in left if thread.name in ("connections", "serve-1")] == []


def test_what_was_opened_is_closed_where_the_store_is_closed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    # LS-27
    made, open_connections = list[str](), module.Opening.connections

    def until_closed(opening: module.Opening, purpose: str) -> Any:
        made.append(purpose)
        if purpose == "barrier":
            raise dist.DistStoreError("it is closed")
        return open_connections(opening, purpose)

    monkeypatch.setattr(module.Opening, "connections", until_closed)
    before = threading.active_count()
    opening = module.Opening(dist.HashStore(), "g", 0, 1, stream(transport="tcp"), torch.device("cpu"))
    nothing: Any = module.SharedMoves({}, {}, dict)
    with pytest.raises(dist.DistStoreError, match="it is closed"):
        module.connect(opening, [nothing, nothing], None, lambda _: None)
    assert made == ["lines", "barrier"]
    assert threading.active_count() == before


def test_a_box_for_several_peers_is_one_object() -> None:
    moves = [move for peer in (1, 2) for move in Tensor("t", (2, 2), 0, peer).moves()]
    peers = module.Peers(["a", "b", "c"], [0, 1, 2], [0, 1, 2], [0, 1, 2])
    made: list[Any] = []

    class Held:
        def shared(self, piece: Any) -> SharedBox:
            made.append(piece)
            return SharedBox((torch.zeros(2, 2),))

    shared = module.SharedMoves.of(module.RankMoves(moves, [], []), peers, Held(), Held)
    assert len(made) == 1
    assert shared.outgoing[1][0] is shared.outgoing[2][0]
