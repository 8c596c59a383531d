"""Mirrors of state that lies on a card: what its keeper has is proven by digests that the card computes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card: torch.cuda.is_available() is False"),
]

from snapshot_shard import Shard, same  # noqa: E402

from liver_slurm.transfer.mirror.host_room import Rooms  # noqa: E402
from liver_slurm.transfer.mirror.proof import compare  # noqa: E402
from liver_slurm.transfer.mirror.snapshot import copy, tensors_of  # noqa: E402
from liver_slurm.transfer.mirror.snapshot_keeper import SnapshotKeeper  # noqa: E402
from liver_slurm.transfer.mirror.snapshot_sender import SnapshotSender  # noqa: E402
from liver_slurm.worker.mirroring import on_device  # noqa: E402

CARD = torch.device("cuda", 0)


class OnCard(Shard):
    """All of it on a card."""

    world = SimpleNamespace(backend="nccl")

    def __init__(self) -> None:
        super().__init__(0)
        self.gradients = [one.to(CARD) for one in self.gradients]
        self.trained = [replace(box, state=tuple(view.to(CARD) for view in box.state)) for box in self.trained]
        self.fixed = [(piece, view.to(CARD)) for piece, view in self.fixed]


class Pair:
    def __init__(self, alone: bool) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.shard, self.states = OnCard(), dict[int, list[torch.Tensor]]()
        self.sender = SnapshotSender(self.ours, 2, Rooms(CARD).lease(), alone)
        self.keeper = SnapshotKeeper({"0": self.theirs}, Rooms(CARD).lease())
        self.keeper.start()
        self.sender.attach(self.shard)  # type: ignore[arg-type]

    def step(self, step: int) -> None:
        self.sender.refresh(self.shard, step, True)  # type: ignore[arg-type]
        self.shard.update(step)
        self.states[step + 1] = self.shard.state()

    def close(self) -> None:
        self.sender.give_up()
        self.ours.shutdown(socket.SHUT_RDWR)
        self.theirs.shutdown(socket.SHUT_RDWR)
        self.keeper.join()
        self.sender.close()
        self.ours.close()
        self.theirs.close()


@pytest.fixture(params=[True, False], ids=["mapped", "sent"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.close()


def test_a_snapshot_is_proven_on_the_card_and_in_host_memory(pair: Pair) -> None:
    # LS-3, LS-34
    pair.step(0)
    assert pair.sender._ready.wait(60)
    pair.sender.all_ready()
    for step in range(1, 6):
        pair.step(step)
        pair.sender.all_ready()
    pair.sender._arrived.wait(60)
    step = pair.sender.sent
    assert step in pair.keeper.steps()
    digests = pair.keeper.digests_of("0", step)
    (kept,) = [one for one in pair.keeper._kept() if one.step == step]
    pair.ours.shutdown(socket.SHUT_RDWR)
    found = pair.keeper.state_of("0", step)
    assert same([view.to(CARD) for view in tensors_of(found)], pair.states[step])
    assert (compare(found, digests), compare(on_device(found, CARD), digests)) == ((), ())
    copy(pair.sender.state_at(step), pair.shard.replica())
    assert compare(pair.shard.replica(), pair.sender.digests_at(step)) == (), "and one's own, where one goes back"
    kept.data[1] ^= 4
    assert compare(on_device(pair.keeper.state_of("0", step), CARD), digests) == ("w0",)
