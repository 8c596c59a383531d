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

from liver_slurm.bench.two_ends import TwoEnds
from liver_slurm.transfer import threads
from liver_slurm.transfer.one_sided.description import Reader, View, decode
from liver_slurm.transfer.one_sided.handshake import describe, open_reader
from liver_slurm.transfer.shared_box import SharedBox

_held: dict[str, Any] = {}
"""What an end keeps from one call to the next."""


def read_host(ends: TwoEnds, size: int, count: int) -> float:
    """Bytes a second from host memory of one process to another's."""
    return size * count / _read(ends, "cpu", size, count)


def read_card(ends: TwoEnds, size: int, count: int) -> float:
    """Bytes a second from one card to another."""
    return size * count / _read(ends, "cuda", size, count)


def read_cards(ends: TwoEnds, size: int, count: int) -> float:
    """Bytes a second each way, where both cards read from each other."""
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
    return msgspec.msgpack.encode(describe([_held["box"]], _held["counter"]))


def _pull(described: bytes, device: str, size: int, count: int) -> float:
    owner = decode(described)
    reader = open_reader(owner, torch.device(device, 0) if device == "cuda" else torch.device(device))
    target = torch.empty(size // 4, device=device)
    (source,) = owner.boxes[0].state
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
    """As many as fit into a batch at a time."""
    together = max(1, (256 << 20) // target.nbytes)
    for begin in range(0, count, together):
        some = min(together, count - begin)
        reader.copy([target] * some, [source] * some)


def _read_host(pool: Executor, reader: Reader, target: torch.Tensor, source: View, count: int) -> None:
    """In parts that the threads share, as at a cutover."""
    part = min(target.numel(), (4 << 20) // 4)

    def read(begin: int) -> None:
        size = min(part, target.numel() - begin)
        reader.copy([target.narrow(0, begin, size)], [source.narrow(0, begin, size)])

    for _ in range(count):
        list(pool.map(read, range(0, target.numel(), part)))
