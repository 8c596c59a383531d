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
from transfer_lab import Joined, Tensor, Trainer, join, stream

from liver_slurm.base.errors import TransferError
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
    near = {pair for pair in moved if machines[pair[0]] == machines[pair[1]]}
    assert {joined.connected.messages for joined in found} == {moved != near}
    assert len({joined.connected.staging_bytes for joined in found}) == 1, "both ends cut chunks alike"
    for tensor in tensors:
        held = found[tensor.source].trainer.state(tensor.name)
        arrived = found[tensor.target].trainer.arrived[tensor.name]
        assert all(torch.equal(*pair) for pair in zip(arrived, held, strict=True))
    for joined in found:
        joined.transfer.close()


@pytest.mark.parametrize("transport", ["tcp", "shm", "gloo"])
def test_only_auto_reads(transport: Any) -> None:
    opening = module.Opening(
        None, "lab", 0, 1, stream(transport=transport), torch.device("cpu"), module.timedelta(seconds=1)
    )
    connected = module.connect(opening, module.SharedMoves({}, {}), None, print)
    assert (connected.pull, connected.messages) == (None, True)
    assert connected.staging_bytes == opening.stream.staging_bytes


def test_what_was_opened_is_closed_where_the_plan_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    # LS-27, LS-32
    tensors = [Tensor("t", (3, 2), 0, 1)]
    store, opened = dist.HashStore(), threading.Barrier(2)
    describe = handshake.describe

    def otherwise(boxes: Any, counter: Any) -> Any:
        told = describe(boxes, counter)
        return msgspec.structs.replace(told, boxes=[])

    monkeypatch.setattr(handshake, "describe", otherwise)
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
    # The owner's and the receiver's messages are opened after the words, which the receiver never came to.
    assert [thread.name for thread in left if thread.name == "connections"] == []


def test_a_box_for_several_peers_is_one_object() -> None:
    moves = [move for peer in (1, 2) for move in Tensor("t", (2, 2), 0, peer).moves()]
    peers = module.Peers(["a", "b", "c"], [0, 1, 2], [0, 1, 2], [0, 1, 2])
    made: list[Any] = []

    def held(piece: Any) -> SharedBox:
        made.append(piece)
        return SharedBox((torch.zeros(2, 2),))

    shared = module.SharedMoves.of(module.RankMoves(moves, [], []), peers, held, held)
    assert len(made) == 1
    assert shared.outgoing[1][0] is shared.outgoing[2][0]
