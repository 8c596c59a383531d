"""The meeting that stands between what is proven and what is freed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
import torch.distributed as dist

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.barrier import Barrier
from liver_slurm.transfer.connections import Connections

DEADLINE = 60.0


@contextmanager
def barriers(peers: int) -> Iterator[list[tuple[Barrier, Connections]]]:
    """One for each of so many workers of this process."""
    store = dist.HashStore()
    with ExitStack() as opened:
        connections = [Connections(store, me, peers, True, "lo") for me in range(peers)]
        for each in connections:
            opened.callback(each.close)
        yield [(Barrier(each, me, peers), each) for me, each in enumerate(connections)]


@pytest.mark.parametrize("peers", [1, 2, 3, 5, 8])
def test_nobody_goes_on_before_all_have_come(peers: int) -> None:
    with barriers(peers) as made, ThreadPoolExecutor(peers) as pool:
        for last in range(peers):
            come, early = threading.Event(), []

            def body(me: int, last: int = last, come: threading.Event = come, early: list[int] = early) -> None:
                if me == last:
                    come.set()
                made[me][0].wait()
                if not come.is_set():
                    early.append(me)

            others = [pool.submit(body, me) for me in range(peers) if me != last]
            pool.submit(body, last).result(DEADLINE)
            for other in others:
                other.result(DEADLINE)
            assert not early


@pytest.mark.parametrize("peers", [2, 3, 5])
def test_one_that_fails_keeps_everybody(peers: int) -> None:
    with barriers(peers) as made, ThreadPoolExecutor(peers) as pool:

        def body(me: int) -> bool:
            try:
                made[me][0].wait()
            except TransferError:
                made[me][1].give_up()
                return False
            return True

        made[0][1].give_up()
        assert not any(pool.map(body, range(1, peers)))
