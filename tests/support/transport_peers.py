"""Processes that talk over a transport as they are told, for tests that kill, stop and abort some of them."""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from liver_slurm.base.errors import TransferError
from liver_slurm.config.schema import StreamSection
from liver_slurm.transfer.transports.base import Transport
from liver_slurm.transfer.transports.select import open_transport

Message = tuple[str, int, int]
"""``send`` or ``receive``, the peer, and the length in bytes."""
TIMEOUT = timedelta(seconds=120)
"""Far more than any test waits: what ends earlier ends for another reason."""


class Peer:
    """One process, seen from the test."""

    def __init__(self, process: Any, pipe: Connection) -> None:
        self.process, self._pipe = process, pipe

    def tell(self, order: str, *arguments: Any) -> None:
        """``talk`` (messages), ``abort``, ``memory``; the first is answered when it is over."""
        self._pipe.send((order, *arguments))

    def answer(self, within: float = 20.0) -> Any:
        """What it says; fails the test if it says nothing in time."""
        assert self._pipe.poll(within), "no answer"
        return self._pipe.recv()


@contextmanager
def peers(count: int, transport: str) -> Iterator[list[Peer]]:
    """``count`` processes, each with the transport open."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "liver_slurm.transfer.transports.select"]
    )  # imported once, not by each process
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = []
    for number in range(count):
        here, there = multiprocessing.Pipe()
        process = context.Process(target=_main, args=(number, count, transport, store.port, there), daemon=True)
        process.start()
        there.close()
        started.append(Peer(process, here))
    try:
        for peer in started:
            assert peer.answer(60) == "open"
        yield started
    finally:
        for peer in started:
            peer.process.kill()
            peer.process.join()


def content(source: int, target: int, number: int, length: int) -> torch.Tensor:
    """What the ``number``-th message of a pair holds."""
    seed = torch.Generator().manual_seed(source * 1000 + target * 100 + number)
    return torch.randint(0, 256, (length,), dtype=torch.uint8, generator=seed)


def _main(me: int, count: int, kind: str, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    stream = StreamSection(transport=kind)  # type: ignore[arg-type]
    transport = open_transport(store, "test", count, me, stream, torch.device("cpu"), TIMEOUT, True)
    pipe.send("open")
    while True:
        try:
            order, *arguments = pipe.recv()
        except EOFError:
            os._exit(0)
        if order == "talk":
            threading.Thread(target=_talk, args=(transport, me, arguments[0], pipe), daemon=True).start()
        elif order == "abort":
            transport.abort()
        elif order == "memory":
            pipe.send([_length(line) for line in Path("/proc/self/maps").read_text().splitlines() if "memfd" in line])


def _talk(transport: Transport, me: int, messages: list[Message], pipe: Connection) -> None:
    """Post all messages, wait for all, compare what came."""
    numbers: dict[tuple[str, int], int] = {}
    try:
        posted = []
        for direction, peer, length in messages:
            number = numbers[direction, peer] = numbers.get((direction, peer), -1) + 1
            source, target = (me, peer) if direction == "send" else (peer, me)
            expected = content(source, target, number, length)
            buffer = expected.clone() if direction == "send" else torch.zeros_like(expected)
            post = transport.send if direction == "send" else transport.receive
            posted.append((post(peer, buffer), buffer, expected))
        for pending, buffer, expected in posted:
            pending.wait()
            assert torch.equal(buffer, expected), "other bytes arrived"
        pipe.send("done")
    except TransferError as error:
        pipe.send(f"TransferError: {error}")
    except Exception:  # noqa: BLE001 - the test fails with it
        pipe.send(traceback.format_exc())


def _length(line: str) -> int:
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    return end - start
