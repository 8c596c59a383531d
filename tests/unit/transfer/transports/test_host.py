"""The host's transport inside one process: who is let in, which way is taken, and what is said when plans differ."""

from __future__ import annotations

import ctypes
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import Literal

import psutil
import pytest
import torch
import torch.distributed as dist
from coordinator_lab import until

from liver_slurm.base.errors import BadInput, TransferError
from liver_slurm.config.schema import StreamSection
from liver_slurm.transfer.transports import host, mesh, shared_memory
from liver_slurm.transfer.transports.host import HostTransport
from liver_slurm.transfer.transports.mesh import Connections, Reach
from liver_slurm.transfer.transports.select import choose, open_transport
from liver_slurm.transfer.transports.shared_memory import PIECE_BYTES

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
Open = Callable[..., HostTransport]


@pytest.fixture
def open_peer() -> Iterator[Open]:
    """Opens one of two peers that live in this process."""
    store = dist.HashStore()
    with ExitStack() as opened:

        def open_one(me: int, reach: Reach = "auto", seconds: float = 20) -> HostTransport:
            transport = HostTransport(Connections(store, me, 2, reach, "lo"), timedelta(seconds=seconds))
            return opened.enter_context(closing(transport))

        yield open_one


def filled(length: int, value: int) -> torch.Tensor:
    return torch.full((length,), value, dtype=torch.uint8)


def families(transport: HostTransport) -> set[socket.AddressFamily]:
    return {connection.family for connection in transport._connections._dialled.values()}


@pytest.mark.parametrize("reach", ["auto", "tcp", "shm"])
@pytest.mark.parametrize("length", [0, 1, 100_000])
def test_messages_cross_in_both_directions(open_peer: Open, reach: Reach, length: int) -> None:
    first, second = open_peer(0, reach), open_peer(1, reach)
    here, there = filled(length, 0), filled(length, 0)
    pending = [
        first.send(1, filled(length, 7)),
        first.receive(1, here),
        second.receive(0, there),
        second.send(0, filled(length, 9)),
    ]
    for each in pending:
        each.wait()
    assert torch.equal(here, filled(length, 9))
    assert torch.equal(there, filled(length, 7))
    assert families(first) == {socket.AF_INET if reach == "tcp" else socket.AF_UNIX}


def test_the_last_message_arrives_though_its_sender_has_left(open_peer: Open) -> None:
    first, second = open_peer(0), open_peer(1)
    first.send(1, filled(5000, 3)).wait()
    first.close()
    arrived = filled(5000, 0)
    second.receive(0, arrived).wait()
    assert torch.equal(arrived, filled(5000, 3))


@pytest.mark.parametrize("reach", ["tcp", "shm"])
def test_a_length_that_was_not_expected_ends_the_pair_at_both_ends(open_peer: Open, reach: Reach) -> None:
    first, second = open_peer(0, reach), open_peer(1, reach)
    sending = first.send(1, filled(64 << 20, 1))
    with pytest.raises(TransferError, match="message 0 of 67108864 bytes where message 0 of 10 bytes was due"):
        second.receive(0, filled(10, 0)).wait()
    with pytest.raises(TransferError, match="peer 1 went away"):
        sending.wait()


def test_a_damaged_message_is_refused(open_peer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = open_peer(0, "tcp"), open_peer(1, "tcp")
    intact = host._checksum
    monkeypatch.setattr(host, "_checksum", lambda buffer: intact(buffer) ^ 1)  # as if other bytes had been hashed
    first.send(1, filled(10, 1)).wait()
    monkeypatch.setattr(host, "_checksum", intact)
    with pytest.raises(TransferError, match="message 0 of peer 0 was damaged on its way"):
        second.receive(0, filled(10, 0)).wait()


def test_a_damaged_piece_is_refused(open_peer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = open_peer(0, "shm"), open_peer(1, "shm")
    copy = ctypes.memmove

    def damaging(target: int, source: int, length: int) -> None:
        copy(target, source, length)
        if length == 10:  # the last piece's, on its way into the ring
            copy(target, b"x", 1)

    monkeypatch.setattr(shared_memory.ctypes, "memmove", damaging)
    message = filled(PIECE_BYTES + 10, 1)
    sending = first.send(1, message)
    with pytest.raises(TransferError, match="message 0 of peer 0 was damaged on its way"):
        second.receive(0, torch.empty_like(message)).wait()
    sending.wait()


def test_a_peer_that_stays_silent_is_not_waited_for_beyond_the_limit(open_peer: Open) -> None:
    open_peer(0)
    with pytest.raises(TransferError, match="did not go through within"):
        open_peer(1, seconds=0.01).receive(0, filled(10, 0)).wait()


def test_nothing_is_posted_after_an_abort(open_peer: Open) -> None:
    first = open_peer(0)
    waiting = first.receive(1, filled(10, 0))
    open_peer(1)
    first.abort()
    first.abort()
    with pytest.raises(TransferError):
        waiting.wait()
    with pytest.raises(TransferError, match="given up"):
        first.send(1, filled(10, 0))


def test_connections_can_be_made_beforehand(open_peer: Open) -> None:
    first, second = open_peer(0), open_peer(1)
    first.connect([1])
    assert families(first) == {socket.AF_UNIX}
    second.close()
    with pytest.raises(TransferError, match="peer 1"):
        first.receive(1, filled(10, 0)).wait()


def test_a_caller_that_has_not_said_yet_who_it_is_is_hung_up_on(open_peer: Open) -> None:
    called = open_peer(1, "tcp")
    own = called._connections._own
    with socket.create_connection((own.host, own.port)) as caller:
        caller.settimeout(20)
        until(lambda: called._connections._callers, "the call is taken")
        called.close()
        assert caller.recv(1) == b""


def test_peers_on_different_machines_use_tcp_or_are_refused(open_peer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    far = open_peer(0)
    monkeypatch.setattr(mesh, "machine", lambda: "another")
    near = open_peer(1)
    near.connect([0])
    far.connect([1])
    assert families(near) == families(far) == {socket.AF_INET}


def test_shm_says_in_one_line_that_a_peer_is_elsewhere(open_peer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    open_peer(0)
    monkeypatch.setattr(mesh, "machine", lambda: "another")
    with pytest.raises(BadInput, match=r"stream\.transport is 'shm', but peer 0 is on another machine.*'auto'$"):
        open_peer(1, "shm").receive(0, filled(10, 0)).wait()


@pytest.mark.parametrize("greeting", [b"", b"x", b"x" * 36, mesh._GREETING.pack(b"y" * 32, 0)])
def test_strangers_are_refused_and_disturb_nobody(open_peer: Open, greeting: bytes) -> None:
    first, second = open_peer(0, "tcp"), open_peer(1, "tcp")
    own = second._connections._own
    with socket.create_connection((own.host, own.port)) as stranger:
        stranger.sendall(greeting)
        stranger.shutdown(socket.SHUT_WR)
        stranger.settimeout(20)
        assert stranger.recv(1) == b""
    arrived = filled(10, 0)
    first.send(1, filled(10, 5)).wait()
    second.receive(0, arrived).wait()
    assert torch.equal(arrived, filled(10, 5))


@pytest.mark.parametrize("transport", ["auto", "gloo", "nccl"])
def test_an_unknown_interface_is_said_with_those_that_exist(
    transport: Literal["auto", "gloo", "nccl"],
) -> None:
    stream = StreamSection(interface="ib7", transport=transport)
    known = re.escape(", ".join(sorted(psutil.net_if_addrs())))
    with pytest.raises(BadInput, match=rf"stream\.interface: 'ib7' has no IPv4 address .*{known}"):
        open_transport(dist.HashStore(), "test", 1, 0, stream, CPU, timedelta(seconds=1), True)


def test_the_interface_is_what_peers_connect_to(open_peer: Open) -> None:
    own = open_peer(0)._connections
    assert own._own.host == "127.0.0.1"
    assert own._listeners[0].getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("setting", "device", "beside_training", "chosen"),
    [
        ("auto", CPU, True, "auto"),
        ("auto", CPU, False, "auto"),
        ("auto", GPU, True, "auto"),
        ("auto", GPU, False, "nccl"),
        ("nccl", GPU, True, "auto"),
        ("nccl", GPU, False, "nccl"),
        ("gloo", CPU, True, "gloo"),
        ("tcp", GPU, True, "tcp"),
        ("shm", CPU, False, "shm"),
    ],
)
def test_nccl_is_for_the_pause_only(setting: str, device: torch.device, beside_training: bool, chosen: str) -> None:
    transport, reason = choose(setting, device, beside_training)
    assert transport == chosen
    assert reason


def test_no_thread_stays(open_peer: Open) -> None:
    before = threading.active_count()
    first, second = open_peer(0), open_peer(1)
    first.send(1, filled(10, 1)).wait()
    second.receive(0, filled(10, 0)).wait()
    first.close()
    second.close()
    assert threading.active_count() == before
