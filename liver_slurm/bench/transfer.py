"""``bench transfer``: GB/s between two processes, each transport against the raw link, measured in turns.

What travels are staging buffers, as :mod:`liver_slurm.transfer.blocking_transfer` divides them: a quarter of the
staging memory is one message, and four are in flight. The raw link is given the same buffers: libc's memcpy for shared
memory, a plain TCP stream on the loopback interface for the others.

The document's ``paths`` are the ways between two workers of one host, cards included: :mod:`liver_slurm.bench.paths`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe
from typing import Any

import torch
import torch.distributed as dist

from liver_slurm.bench import machine, paths
from liver_slurm.config.schema import StreamSection
from liver_slurm.transfer.transports import tcp
from liver_slurm.transfer.transports.base import Pending, Transport
from liver_slurm.transfer.transports.select import open_transport
from liver_slurm.transfer.transports.shared_memory import RING_BYTES

RAW = {"shm": "memcpy", "tcp": "stream", "gloo": "stream"}
"""The transports, and the raw link of each."""
if importlib.util.find_spec("nixl") is not None:
    RAW["ucx"] = "stream"
STAGING = tuple(mib << 20 for mib in (1, 4, 16, 64))
WINDOW = 4
_TIMEOUT = timedelta(seconds=60)
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Effort:
    bytes: int
    """Moved in one run."""
    runs: int
    """Of the raw link and of ours, in turns."""


def run(quick: bool) -> dict[str, Any]:
    """Measure every transport with every staging size."""
    effort = _Effort(bytes=64 << 20, runs=3) if quick else _Effort(bytes=512 << 20, runs=9)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _two_ends() as ends:
            cases = [_case(ends, name, staging, effort) for name in RAW for staging in STAGING]
    finally:
        torch.set_num_threads(threads)
    found = paths.measure(paths.QUICK if quick else paths.WHOLE, machine.count_gpus())
    return {"bench": "transfer", "bytes_per_run": effort.bytes, "runs": effort.runs, "cases": cases, "paths": found}


def table(document: dict[str, Any]) -> str:
    """The document for people."""
    from tabulate import tabulate

    rows = [
        [
            case["transport"],
            f"{case['staging_bytes'] >> 20} MiB",
            f"{case['gb_per_s']:.2f}",
            f"{case['raw_gb_per_s']:.2f}",
            case["raw"],
            f"{case['ratio']:.0%}",
        ]
        for case in document["cases"]
    ]
    headers = ["transport", "staging", "GB/s", "raw GB/s", "raw link", "ratio"]
    return tabulate(rows, headers, disable_numparse=True) + "\n\n" + paths.table(document["paths"])


class _Links:
    """One process's end of every transport and of the raw stream; process 0 sends."""

    def __init__(self, me: int, store_port: int, stream: socket.socket) -> None:
        store = dist.TCPStore("127.0.0.1", store_port, is_master=False, timeout=_TIMEOUT)
        self._me, self._stream = me, stream
        self._copies = _slots(max(STAGING) // WINDOW)
        self._transports: dict[str, Transport] = {
            name: open_transport(store, f"bench/{name}", 2, me, StreamSection(transport=name), _CPU, _TIMEOUT, True)  # type: ignore[arg-type]
            for name in RAW
        }

    def move(self, name: str, slots: list[torch.Tensor], count: int) -> None:
        """Send or receive ``count`` messages, in this many buffers, one after the other."""
        if name == "memcpy":
            for number in range(count):
                slot, target = slots[number % WINDOW], self._copies[number % WINDOW]
                ctypes.memmove(target.data_ptr(), slot.data_ptr(), slot.numel())
        elif name == "stream":
            for number in range(count):
                if self._me == 0:
                    self._stream.sendall(memoryview(slots[number % WINDOW].numpy()))
                else:
                    tcp.receive(self._stream, slots[number % WINDOW])
        else:
            transport = self._transports[name]
            post = transport.send if self._me == 0 else transport.receive
            window: deque[Pending] = deque()
            for number in range(count):
                if len(window) == WINDOW:
                    window.popleft().wait()
                window.append(post(1 - self._me, slots[number % WINDOW]))
            for pending in window:
                pending.wait()

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()
        self._stream.close()


@dataclass(frozen=True)
class _Ends:
    links: _Links
    other: Connection
    """Tells the other process what to receive, and hears that it has."""


def _case(ends: _Ends, name: str, staging: int, effort: _Effort) -> dict[str, Any]:
    """One transport with one staging size: medians of runs that take turns with the raw link's."""
    slots = _slots(staging // WINDOW)
    count = max(WINDOW, effort.bytes // slots[0].numel())
    rates: dict[str, list[float]] = {RAW[name]: [], name: []}
    for number in range(effort.runs + 1):
        for each, seen in rates.items():
            seconds = _timed(ends, each, slots, count)
            if number:  # the first run of each touches its memory
                seen.append(count * slots[0].numel() / seconds / 1e9)
    ours, raw = statistics.median(rates[name]), statistics.median(rates[RAW[name]])
    return {
        "name": f"{name}, {staging >> 20} MiB",
        "transport": name,
        "raw": RAW[name],
        "staging_bytes": staging,
        "gb_per_s": ours,
        "raw_gb_per_s": raw,
        "ratio": ours / raw,
        "staging_peak_bytes": sum(slot.numel() for slot in slots),
        "ring_bytes": RING_BYTES if name in ("shm", "ucx") else 0,
    }


def _timed(ends: _Ends, name: str, slots: list[torch.Tensor], count: int) -> float:
    """Seconds until the other end has the last byte."""
    together = name != "memcpy"
    if together:
        ends.other.send((name, slots[0].numel(), count))
        ends.other.recv()  # its buffers are there
    begun = time.perf_counter()
    ends.links.move(name, slots, count)
    if together:
        ends.other.recv()
    return time.perf_counter() - begun


def _slots(size: int) -> list[torch.Tensor]:
    return [torch.ones(size, dtype=torch.uint8) for _ in range(WINDOW)]


@contextmanager
def _two_ends() -> Iterator[_Ends]:
    """This process as the sender, and another one as the receiver."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the other process inherits it
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    here, there = Pipe()
    with socket.create_server(("127.0.0.1", 0)) as server:
        # Not multiprocessing's: in a session of its own it does not hear a terminal's Ctrl-C, which is for us.
        receiver = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, (there.fileno(), store.port, server.getsockname()[1]))],
            pass_fds=[there.fileno()],
            start_new_session=True,
        )
        there.close()
        server.settimeout(_TIMEOUT.total_seconds())
        stream, _ = server.accept()
    with closing(_Links(0, store.port, stream)) as links, here:
        try:
            yield _Ends(links, here)
            here.send(None)
            receiver.wait()
        finally:
            receiver.kill()  # before connections that close make it fail, and say so
            receiver.wait()


def _receiver(orders: Connection, store_port: int, stream_port: int) -> None:
    """The other process: receives what it is told to."""
    torch.set_num_threads(1)
    with closing(_Links(1, store_port, socket.create_connection(("127.0.0.1", stream_port)))) as links, orders:
        while (order := orders.recv()) is not None:
            name, size, count = order
            slots = _slots(size)
            orders.send("ready")
            links.move(name, slots, count)
            orders.send("done")


if __name__ == "__main__":
    descriptor, *ports = map(int, sys.argv[1:])
    _receiver(Connection(descriptor), *ports)
