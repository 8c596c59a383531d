"""Every transport between real processes: what is read arrives, and who waits for the dead or the aborted is told."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from memory_owner import OtherProcess, same_bytes
from transfer_lab import Joined, Tensor, Trainer, act, join, join_there, stream

from liver_slurm.base.errors import TransferError

TRANSPORTS = pytest.mark.parametrize("transport", ["shm", "tcp", "auto", pytest.param("ucx", marks=pytest.mark.ucx)])
PATIENCE = 120.0
WATCHED = 1.0
"""Seconds: how long the processor time of idle workers is measured."""
SEED = 5
TENSORS = [Tensor("large", (1200, 1000), 0, 1), Tensor("scattered", (90, 7), 0, 1, 1, scattered=True)]


@contextmanager
def workers(transport: str) -> Iterator[tuple[OtherProcess, Joined]]:
    """The owner, in a process of its own, and the receiver, here."""
    with ExitStack() as opened:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        owner = opened.enter_context(OtherProcess())
        owner.begin(join_there, store.port, 0, TENSORS, 2, SEED, transport)
        receiver = join(store, Trainer(1, TENSORS, SEED), 2, stream(transport=transport))
        opened.callback(receiver.transfer.close)
        owner.result()
        assert receiver.transfer.probe() > 0
        receiver.transfer.start()
        owner.call(act, "start", "attach")
        yield owner, receiver


def ends(receiver: Joined) -> BaseException | None:
    """What the receiver ends by, which it does."""
    found: list[BaseException | None] = []

    def finish() -> None:
        try:
            receiver.transfer.finish()
            receiver.transfer.prove()
            found.append(None)
        except TransferError as error:
            found.append(error)

    thread = threading.Thread(target=finish)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    return found[0]


@TRANSPORTS
def test_what_is_read_beside_training_and_after_it_is_what_its_owner_has(transport: str) -> None:
    # LS-3
    with workers(transport) as (owner, receiver):
        owner.call(act, "update", "open", "update", "finish")
        assert ends(receiver) is None
        expected = Trainer(0, TENSORS, SEED)
        for _ in range(2):
            expected.update()
        for tensor in TENSORS:
            assert all(map(same_bytes, receiver.trainer.arrived[tensor.name], expected.state(tensor.name)))


@TRANSPORTS
@pytest.mark.parametrize("at", ["before", "opened", "updated"])
def test_a_receiver_is_told_of_an_owner_that_dies(transport: str, at: str) -> None:
    # LS-32
    with workers(transport) as (owner, receiver):
        owner.call(act, *{"before": (), "opened": ("open",), "updated": ("open", "update")}[at])
        owner.kill()
        assert isinstance(ends(receiver), TransferError)


@TRANSPORTS
@pytest.mark.parametrize("end", ["owner", "receiver"])
def test_an_abort_throws_out_whoever_waits_here_and_there(transport: str, end: str) -> None:
    # LS-32
    with workers(transport) as (owner, receiver):
        if end == "owner":
            owner.call(act, "abort")
        else:
            receiver.transfer.abort()
        assert isinstance(ends(receiver), TransferError)
        with pytest.raises(TransferError):
            owner.call(act, "finish", "prove")


@TRANSPORTS
def test_who_has_nothing_to_do_takes_no_core_from_training(transport: str) -> None:
    with workers(transport) as (owner, _):
        processes = [psutil.Process(), psutil.Process(owner.process.pid)]

        def used() -> float:
            return sum(sum(process.cpu_times()[:2]) for process in processes)

        before = used()
        time.sleep(WATCHED)
        assert used() - before < WATCHED / 4


def test_nothing_is_left_of_processes_that_were_killed() -> None:
    def mapped() -> list[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return [line for line in lines if "/memfd:liver-slurm" in line and " r--s " in line]

    before = sorted(Path("/dev/shm").iterdir())
    with workers("auto") as (owner, receiver):
        assert mapped()
        assert "@liver-slurm-" in Path("/proc/net/unix").read_text()
        owner.kill()
        assert isinstance(ends(receiver), TransferError)
    gc.collect()  # until then the traceback of what has failed holds what it was reading
    assert not mapped()
    assert sorted(Path("/dev/shm").iterdir()) == before
