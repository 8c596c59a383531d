"""The meeting that stands between what is proven and what is freed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.layerwise import meet
from liver_slurm.transfer.transports.base import Pending

DEADLINE = 30.0


class Hall:
    """Where messages between threads lie until they are taken, and who has left."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.lying: dict[tuple[int, int], torch.Tensor] = {}
        self.gone: set[int] = set()


class Waiting:
    """A message under way."""

    def __init__(self, hall: Hall, pair: tuple[int, int], done: Callable[[], bool]) -> None:
        self._hall, self._pair, self._done = hall, pair, done

    def wait(self) -> None:
        with self._hall.changed:
            over = self._hall.changed.wait_for(lambda: self._done() or self._hall.gone & set(self._pair), DEADLINE)
            if not over or not self._done():
                raise TransferError("a peer is gone")


class Line:
    """A transport between threads; a send waits for its receiver, as NCCL's may."""

    device = torch.device("cpu")

    def __init__(self, hall: Hall, me: int) -> None:
        self._hall, self._me = hall, me

    def connect(self, peers: Iterable[int]) -> None: ...

    def send(self, peer: int, *buffers: torch.Tensor) -> Pending:
        pair, (buffer,) = (self._me, peer), buffers
        with self._hall.changed:
            self._hall.lying[pair] = buffer
            self._hall.changed.notify_all()
        return Waiting(self._hall, pair, lambda: pair not in self._hall.lying)

    def receive(self, peer: int, buffer: torch.Tensor) -> Pending:
        pair = peer, self._me
        taken = False

        def take() -> bool:
            nonlocal taken
            if not taken and pair in self._hall.lying:
                buffer.copy_(self._hall.lying.pop(pair))
                taken = True
                self._hall.changed.notify_all()
            return taken

        return Waiting(self._hall, pair, take)

    def receive_now(self, peer: int, buffer: torch.Tensor) -> None:
        self.receive(peer, buffer).wait()

    def abort(self) -> None:
        with self._hall.changed:
            self._hall.gone.add(self._me)
            self._hall.changed.notify_all()

    def close(self) -> None: ...


def lines_of(peers: int) -> list[Line]:
    hall = Hall()
    return [Line(hall, me) for me in range(peers)]


@pytest.mark.parametrize("peers", range(1, 10))
def test_nobody_goes_on_before_all_have_come(peers: int) -> None:
    lines = lines_of(peers)
    for last in range(peers):
        come, early = threading.Event(), []

        def body(me: int, last: int = last, come: threading.Event = come, early: list[int] = early) -> None:
            if me == last:
                come.set()
            meet(lines[me], me, peers)
            if not come.is_set():
                early.append(me)

        with ThreadPoolExecutor(peers) as pool:
            others = [pool.submit(body, me) for me in range(peers) if me != last]
            pool.submit(body, last).result(DEADLINE)
            for other in others:
                other.result(DEADLINE)
        assert not early


@pytest.mark.parametrize("peers", [2, 3, 5, 8])
def test_one_that_fails_keeps_everybody(peers: int) -> None:
    lines = lines_of(peers)

    def body(me: int) -> bool:
        try:
            meet(lines[me], me, peers)
        except TransferError:
            lines[me].abort()
            return False
        return True

    lines[0].abort()
    with ThreadPoolExecutor(peers) as pool:
        assert not any(pool.map(body, range(1, peers)))
