"""Raw links: bytes a second that this machine gives between two processes, with nothing of ours in between.

Each function measures one link between the ends of a :class:`~liver_slurm.bench.two_ends.TwoEnds`, with transfers of a
given size, one after the other. These are the baselines of ``bench transfer``. The functions with an underscore run
inside an end and return seconds, or what the other end needs to reach a buffer.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import reduce_tensor

from liver_slurm.base.errors import LiverError
from liver_slurm.bench.two_ends import TwoEnds

SIZES = tuple(mib << 20 for mib in (4, 64, 256))
"""Bytes of one transfer."""
THREADS = min(8, len(os.sched_getaffinity(0)))
"""Of memcpy with several."""
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PTRACER = 0x59616D61
_held: dict[str, Any] = {}
"""What an end keeps from one call to the next."""


class Link(NamedTuple):
    """One way to bring bytes from one process to another, or from one memory to another."""

    rate: Callable[[TwoEnds, int, int], float]
    """Ends, bytes of a transfer and number of transfers → bytes a second."""
    cards: int = 0
    """CUDA cards that it needs."""


def memcpy(ends: TwoEnds, size: int, count: int) -> float:
    """Return the bytes a second of libc's memcpy, one thread."""
    return size * count / float(ends.call(0, _memcpy, size, count, 1))


def memcpy_threads(ends: TwoEnds, size: int, count: int) -> float:
    """Return the bytes a second of :data:`THREADS` threads that copy a part of each transfer with memcpy."""
    return size * count / float(ends.call(0, _memcpy, size, count, THREADS))


def process_vm_readv(ends: TwoEnds, size: int, count: int) -> float:
    """Return the bytes a second that one process reads from another's memory with the system call of this name."""
    owner, address = ends.call(1, _hold_host, size)
    return size * count / float(ends.call(0, _read_memory, owner, address, size, count))


def stream(ends: TwoEnds, size: int, count: int) -> float:
    """Return the bytes a second of one TCP stream on the loopback interface."""
    port = ends.call(0, _listen)
    seconds, _ = ends.both((_receive, size, count), (_send, port, size, count))
    return size * count / float(seconds)


def device_to_host(ends: TwoEnds, size: int, count: int) -> float:
    """Return the bytes a second from a card to pinned host memory."""
    return size * count / float(ends.call(0, _across, "cuda", "pinned", size, count))


def host_to_device(ends: TwoEnds, size: int, count: int) -> float:
    """Return the bytes a second from pinned host memory to a card."""
    return size * count / float(ends.call(0, _across, "pinned", "cuda", size, count))


def peer(ends: TwoEnds, size: int, count: int) -> float:
    """Return the bytes a second that one process copies from another's card to its own, over CUDA IPC."""
    handle = ends.call(1, _hold_card, size)
    return size * count / float(ends.call(0, _pull, handle, size, count))


def peer_both_ways(ends: TwoEnds, size: int, count: int) -> float:
    """Return the bytes a second each way while both processes copy from each other's card at once, the slower of the
    two."""
    handles = [ends.call(end, _hold_card, size) for end in range(2)]
    return size * count / max(map(float, ends.both((_pull, handles[1], size, count), (_pull, handles[0], size, count))))


LINKS = {
    "memcpy": Link(memcpy),
    "memcpy_threads": Link(memcpy_threads),
    "process_vm_readv": Link(process_vm_readv),
    "stream": Link(stream),
    "device_to_host": Link(device_to_host, cards=1),
    "host_to_device": Link(host_to_device, cards=1),
    "peer": Link(peer, cards=2),
    "peer_both_ways": Link(peer_both_ways, cards=2),
}
"""All of them, by the name that documents have."""


def why_not(name: str, cards: int) -> str:
    """Return why a link cannot be measured on a machine with so many cards; empty: it can."""
    needed = LINKS[name].cards
    if needed <= cards:
        return ""
    return "there is no CUDA card here" if not cards else f"it needs {needed} CUDA cards, and there is {cards}"


# ---- inside an end


def _seconds(copy: Callable[[], object], count: int, settle: Callable[[], object] = lambda: None) -> float:
    """Return the seconds of so many copies; ``settle`` waits for those that were only begun."""
    copy()  # the first one touches the memory
    settle()
    begun = time.perf_counter()
    for _ in range(count):
        copy()
    settle()
    return time.perf_counter() - begun


def _memcpy(size: int, count: int, threads: int) -> float:
    source, target = _host(size, 1), _host(size, 0)
    bounds = [size * number // threads for number in range(threads + 1)]

    def part(number: int) -> None:
        start, end = bounds[number], bounds[number + 1]
        ctypes.memmove(target.data_ptr() + start, source.data_ptr() + start, end - start)  # lets other threads run

    with ThreadPoolExecutor(threads) as pool:
        seconds = _seconds((lambda: part(0)) if threads == 1 else (lambda: [*pool.map(part, range(threads))]), count)
    _check(target)
    return seconds


def _hold_host(size: int) -> tuple[int, int]:
    """Keep a buffer for the other end to read: this process's number, and the address."""
    _held["host"] = _host(size, 1)
    # Yama, where it is there and set so, lets a process read from its descendants only, unless these say otherwise.
    _libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
    return os.getpid(), _held["host"].data_ptr()


class _Range(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _read_memory(owner: int, address: int, size: int, count: int) -> float:
    target = _host(size, 0)

    def copy() -> None:
        done = 0
        while done < size:
            here = _Range(target.data_ptr() + done, size - done)
            there = _Range(address + done, size - done)
            read = _libc.process_vm_readv(
                ctypes.c_int(owner), ctypes.byref(here), ctypes.c_ulong(1), ctypes.byref(there), ctypes.c_ulong(1),
                ctypes.c_ulong(0),
            )  # fmt: skip
            if read <= 0:
                number = ctypes.get_errno()
                raise OSError(number, f"process_vm_readv: {os.strerror(number)}")
            done += read

    seconds = _seconds(copy, count)
    _check(target)
    return seconds


def _listen() -> int:
    _held["server"] = socket.create_server(("127.0.0.1", 0))
    port: int = _held["server"].getsockname()[1]
    return port


def _receive(size: int, count: int) -> float:
    with _held.pop("server") as server:
        connection, _ = server.accept()
    target = _host(size, 0)
    view = memoryview(target.numpy())

    def copy() -> None:
        done = 0
        while done < size:
            read = connection.recv_into(view[done:])
            if not read:
                raise LiverError("the stream was closed")
            done += read

    with connection:
        seconds = _seconds(copy, count)
    _check(target)
    return seconds


def _send(port: int, size: int, count: int) -> None:
    source = memoryview(_host(size, 1).numpy())
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(count + 1):  # and the one that touches the memory
            connection.sendall(source)


def _across(source: str, target: str, size: int, count: int) -> float:
    """Copy between a card and pinned host memory; ``source``, ``target``: ``cuda`` or ``pinned``."""
    buffers = {"cuda": torch.empty(size, dtype=torch.uint8, device="cuda"), "pinned": _host(size, 0).pin_memory()}
    buffers[source].fill_(1)
    buffers[target].fill_(0)
    return _on_card(buffers[source], buffers[target], count)


def _hold_card(size: int) -> Any:
    """Keep a buffer on this end's card; what the other end opens it with."""
    _held["card"] = torch.ones(size, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    return reduce_tensor(_held["card"])


def _pull(handle: Any, size: int, count: int) -> float:
    """Copy from the other end's card; each end sees one card, so the peer's memory is opened as memory of its own."""
    target = torch.zeros(size, dtype=torch.uint8, device="cuda")  # first of all, as it starts CUDA
    rebuild, arguments = handle
    # The last argument asks to wait for an event of the peer's card, which this process does not see; the peer has
    # waited for it itself.
    return _on_card(rebuild(*arguments[:-1], False), target, count)


def _on_card(source: torch.Tensor, target: torch.Tensor, count: int) -> float:
    torch.cuda.synchronize()
    queue = torch.cuda.Stream()
    with torch.cuda.stream(queue):
        seconds = _seconds(lambda: target.copy_(source, non_blocking=True), count, queue.synchronize)
    _check(target.cpu())
    return seconds


def _host(size: int, value: int) -> torch.Tensor:
    return torch.full((size,), value, dtype=torch.uint8)


def _check(target: torch.Tensor) -> None:
    if not bool((target == 1).all()):
        raise LiverError("the copy differs from its source")
