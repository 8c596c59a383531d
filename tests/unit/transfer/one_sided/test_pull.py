"""An owner and a receiver in processes of their own, one of which is killed: the other ends, and knows why."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from memory_owner import OtherProcess, same_bytes
from transfer_lab import Joined, Tensor, Trainer, act, die_in_update, join, join_there, stream

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.one_sided.pull import Pull

PATIENCE = 120.0
SEED = 23
TENSORS = [Tensor("t", (300, 70), 0, 1), Tensor("u", (9,), 0, 1, 1), Tensor("v", (4, 4), 0, 1, None)]


@pytest.fixture(params=["auto", "tcp"])
def workers(request: pytest.FixtureRequest) -> Iterator[Callable[[int], tuple[OtherProcess, Joined]]]:
    """Makes a worker in another process, and the other one here, whose number is asked for."""
    with ExitStack() as opened:

        def make(here: int) -> tuple[OtherProcess, Joined]:
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            other = opened.enter_context(OtherProcess())
            other.begin(join_there, store.port, 1 - here, TENSORS, 2, SEED, request.param)
            joined = join(store, Trainer(here, TENSORS, SEED), 2, stream(transport=request.param))
            opened.callback(joined.transfer.close)
            other.result()
            way = "memory" if request.param == "auto" else "network"
            assert [*joined.connected.reads.values(), *joined.connected.read_by.values()] == [way]
            return other, joined

        yield make


def ends(joined: Joined) -> TransferError | None:
    """Finish and prove, which comes to an end; the error, if it is one."""
    found: list[TransferError | None] = []

    def run() -> None:
        try:
            joined.transfer.finish()
            joined.transfer.prove()
            found.append(None)
        except TransferError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    return found[0]


def arrived_after(joined: Joined, updates: int) -> bool:
    """What is here is what such an owner has after so many updates."""
    owner = Trainer(0, TENSORS, SEED)
    for _ in range(updates):
        owner.update()
    return all(
        same_bytes(arrived, held)
        for tensor in TENSORS
        for arrived, held in zip(joined.trainer.arrived[tensor.name], owner.state(tensor.name), strict=True)
    )


Make = Callable[[int], tuple[OtherProcess, Joined]]


def test_state_of_another_process_is_read_while_it_trains(workers: Make) -> None:
    # LS-3, LS-31
    other, joined = workers(1)
    joined.transfer.start()
    other.call(act, "start", "attach", "update", "open", "update", "finish")
    assert ends(joined) is None
    other.call(act, "prove")
    assert arrived_after(joined, 2)


@pytest.mark.parametrize(
    "said", [("start",), ("start", "attach", "update", "open"), ("start", "attach", "open", "update")], ids=" ".join
)
def test_an_owner_that_is_killed(workers: Make, said: tuple[str, ...]) -> None:
    # LS-32
    other, joined = workers(1)
    joined.transfer.start()
    other.call(act, *said)
    other.kill()
    assert isinstance(ends(joined), TransferError)


def test_an_owner_that_is_killed_in_its_update(workers: Make) -> None:
    # LS-31, LS-32
    other, joined = workers(1)
    joined.transfer.start()
    other.call(act, "start", "attach", "open")
    other.begin(die_in_update)
    assert isinstance(ends(joined), TransferError)


def test_an_owner_that_is_killed_at_the_cutover(workers: Make) -> None:
    # LS-31, LS-32
    other, joined = workers(1)
    joined.transfer.start()
    other.call(act, "start", "attach", "open", "update", "finish")
    other.kill()
    error = ends(joined)
    assert error is not None or arrived_after(joined, 1), "it had said everything, or did not"


@pytest.mark.parametrize(("said", "opened"), [(("start",), True), (("start", "finish"), True), (("start",), False)])
def test_a_receiver_that_is_killed(workers: Make, said: tuple[str, ...], opened: bool) -> None:
    # LS-7, LS-32
    other, joined = workers(0)
    joined.transfer.start()
    joined.transfer.attach()
    if opened:
        joined.transfer.open(last=True)
    other.begin(act, *said)
    if "finish" not in said:
        other.result()
    other.kill()
    joined.trainer.update()
    assert isinstance(ends(joined), TransferError)
    expected = Trainer(0, TENSORS, SEED)
    for trainer in (joined.trainer, expected):
        trainer.update()
    expected.update()
    assert all(map(same_bytes, joined.trainer.state("t"), expected.state("t"))), "the owner trains on"


def test_all_is_closed_though_some_of_it_cannot_be() -> None:
    # LS-27
    log = list[str]()

    def part(name: str) -> Any:
        def close() -> None:
            log.append(name)
            if name == "second":
                raise TransferError("a mapping stays")

        def nothing() -> None:
            """It has nothing to throw out."""

        return SimpleNamespace(close=close, shutdown=close, cancel=nothing, give_up=nothing, bytes_received=0)

    owner, first, second, third, lines, pool, agent = map(
        part, ["owner", "first", "second", "third", "lines", "pool", "agent"]
    )
    staging: Any = None
    pull = Pull(owner, [first, second, third], [lines], pool, staging, lambda _: [], agent)
    with pytest.raises(TransferError, match="a mapping stays"):
        pull.close()
    assert (log[:2], sorted(log[2:5]), log[5:]) == (["owner", "pool"], ["first", "second", "third"], ["lines", "agent"])
