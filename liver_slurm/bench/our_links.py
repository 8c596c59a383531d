"""What the product's one-sided transfer makes of a link: bytes a second that one process reads of another's state.

As a receiver does it: batches of boxes straight into their place, with a look at the owner's counter before and after.
"""

from __future__ import annotations

import time
from concurrent.futures import Executor
from functools import partial
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from liver_slurm.bench.two_ends import TwoEnds
from liver_slurm.parallel import shared_memory
from liver_slurm.transfer import threads
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.one_sided.description import Reader, View, decode
from liver_slurm.transfer.one_sided.handshake import describe, open_memory
from liver_slurm.transfer.one_sided.line import Line
from liver_slurm.transfer.one_sided.network import NetworkReader
from liver_slurm.transfer.one_sided.registered_memory import Agent, RegisteredReader
from liver_slurm.transfer.one_sided.service import Answers, Service
from liver_slurm.transfer.one_sided.staging import Staging
from liver_slurm.transfer.shared_box import SharedBox

_PART, _BATCH = 4 << 20, 16 << 20
"""Bytes of a part of a box, and of what a thread reads at a time, as at a cutover."""

_held: dict[str, Any] = {}
"""What an end keeps from one call to the next."""


def read_host(ends: TwoEnds, size: int, count: int) -> float:
    """Return the bytes a second from host memory of one process to another's."""
    return size * count / _read(ends, "cpu", size, count)


def read_tcp(ends: TwoEnds, size: int, count: int) -> float:
    """Return the bytes a second from host memory of one process to another's over the loopback interface."""
    port, described = ends.call(1, _serve, size)
    took = float(ends.call(0, _pull_over_tcp, port, described, size, count))
    ends.call(1, _end_service)
    return size * count / took


def read_ucx(ends: TwoEnds, size: int, count: int) -> float:
    """Return the bytes a second from host memory of one process to another's, by nixl."""
    port, described = ends.call(1, _serve, size, True)
    took = float(ends.call(0, _pull_over_tcp, port, described, size, count, True))
    ends.call(1, _end_service)
    return size * count / took


def read_card(ends: TwoEnds, size: int, count: int) -> float:
    """Return the bytes a second from one card to another."""
    return size * count / _read(ends, "cuda", size, count)


def read_cards(ends: TwoEnds, size: int, count: int) -> float:
    """Return the bytes a second each way, where both cards read from each other."""
    described = ends.both((_hold, "cuda", size), (_hold, "cuda", size))
    took = ends.both((_pull, described[1], "cuda", size, count), (_pull, described[0], "cuda", size, count))
    return size * count / float(max(took))


def _read(ends: TwoEnds, device: str, size: int, count: int) -> float:
    described = ends.call(1, _hold, device, size)
    return float(ends.call(0, _pull, described, device, size, count))


def _hold(device: str, size: int) -> bytes:
    _held["counter"] = torch.zeros(1, dtype=torch.int64, device=device)
    _held["box"] = SharedBox((torch.ones(size // 4, device=device),))
    if device == "cuda":
        torch.cuda.synchronize()
    shared_memory.share([view.untyped_storage() for view in _held["box"].state], keep=True)  # as a shard's
    return msgspec.msgpack.encode(describe([_held["box"]], _held["counter"]))


def _pull(described: bytes, device: str, size: int, count: int) -> float:
    owner = decode(described)
    reader = open_memory(owner, torch.device(device, 0) if device == "cuda" else torch.device(device))
    (source,) = owner.boxes[0].state
    return _timed(reader, source, device, size, count)


def _serve(size: int, nixl: bool = False) -> tuple[int, bytes]:
    """Answer what the other end asks, which meets this one at a store of that port."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    connections = Connections(store, 1, 2, local=False, interface="lo")
    described = _hold("cpu", size)
    _held["connections"], counter, box = connections, _held["counter"], _held["box"]
    agent = _held["agent"] = Agent(torch.device("cpu"), "lo") if nixl else None
    if agent is not None:
        agent.register([counter, *box.state])
        described = msgspec.msgpack.encode(describe([box], counter, agent.metadata()))

    def nothing(*_: Any) -> Any:
        """Answer nothing: no words are asked for, nor gradients."""

    answers = Answers((counter, counter), nothing, nothing, nothing, agent.turn if agent is not None else None)
    _held["service"] = Service(connections, 0, [box], answers, nothing, Staging(1 << 20, 1))
    return store.port, described


def _end_service() -> None:
    _held["connections"].give_up()
    _held["service"].join()
    _held["connections"].close()
    if _held["agent"] is not None:
        _held["agent"].close()


def _pull_over_tcp(port: int, described: bytes, size: int, count: int, nixl: bool = False) -> float:
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    connections = Connections(store, 0, 2, local=False, interface="lo")
    try:
        line, staging, owner, cpu = Line(connections, 1), Staging(1 << 20, 1), decode(described), torch.device("cpu")
        reader: Reader = NetworkReader(line, cpu, staging)
        if nixl:
            reader = RegisteredReader(owner, Agent(cpu, "lo"), line, cpu, staging)
        return _timed(reader, owner.boxes[0].state[0], "cpu", size, count)
    finally:
        connections.close()


def _timed(reader: Reader, source: View, device: str, size: int, count: int) -> float:
    target = torch.empty(size // 4, device=device)
    reader.expect([target])
    with threads.idle() as pool:
        read = _read_card if device == "cuda" else partial(_read_host, pool)
        read(reader, target, source, 1)
        begun = time.perf_counter()
        reader.counter()
        read(reader, target, source, count)
        reader.counter()
        took = time.perf_counter() - begun
    if not bool((target == 1).all()):
        raise ValueError("other bytes arrived")
    reader.close()
    return took


def _read_card(reader: Reader, target: torch.Tensor, source: View, count: int) -> None:
    """Read as many boxes as fit into a batch at a time."""
    together = max(1, (256 << 20) // target.nbytes)
    for begin in range(0, count, together):
        some = min(together, count - begin)
        reader.copy([target] * some, [source] * some)


def _read_host(pool: Executor, reader: Reader, target: torch.Tensor, source: View, count: int) -> None:
    """Read in batches that the threads share, as at a cutover."""
    part = min(target.numel(), _PART // 4)
    parts = [
        (target.narrow(0, begin, size), source.narrow(0, begin, size))
        for begin in range(0, target.numel(), part)
        for size in [min(part, target.numel() - begin)]
    ] * count
    together = _BATCH // _PART

    def read(begin: int) -> None:
        targets, sources = zip(*parts[begin : begin + together], strict=True)
        reader.copy(targets, sources)

    list(pool.map(read, range(0, len(parts), together)))
