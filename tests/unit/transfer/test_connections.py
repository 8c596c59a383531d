"""Connections inside one process: who is let in, which way is taken, and who is told of a peer that is gone."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import psutil
import pytest
import torch.distributed as dist
from coordinator_lab import until

from liver_slurm.base.errors import BadInput, TransferError
from liver_slurm.transfer import connections as module
from liver_slurm.transfer.connections import Connections, receive_exactly
from liver_slurm.transfer.greeting import CHALLENGE, INTRODUCTION, introduction
from liver_slurm.transfer.reception import strangers

Open = Callable[..., Connections]


@pytest.fixture
def open_peer() -> Iterator[Open]:
    """Opens one of two peers that live in this process."""
    store = dist.HashStore()
    with ExitStack() as opened:

        def open_one(me: int, local: bool = True) -> Connections:
            return opened.enter_context(closing(Connections(store, me, 2, local, "lo")))

        yield open_one


def crosses(sender: Connections, receiver: Connections, me: int, content: bytes) -> bool:
    """What one end sends arrives at the other."""
    sender.outgoing(1 - me).sendall(content)
    arrived = bytearray(len(content))
    receive_exactly(receiver.incoming(me), memoryview(arrived))
    return arrived == content


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("length", [1, 100_000])
def test_both_ends_reach_each_other(open_peer: Open, local: bool, length: int) -> None:
    first, second = open_peer(0, local), open_peer(1, local)
    assert crosses(first, second, 0, b"7" * length)
    assert crosses(second, first, 1, b"9" * length)
    assert first.outgoing(1).family == (socket.AF_UNIX if local else socket.AF_INET)


def test_what_was_sent_arrives_though_its_sender_has_left(open_peer: Open) -> None:
    first, second = open_peer(0), open_peer(1)
    first.outgoing(1).sendall(b"3" * 5000)
    first.close()
    arrived = bytearray(5000)
    receive_exactly(second.incoming(0), memoryview(arrived))
    assert arrived == b"3" * 5000
    with pytest.raises(ConnectionResetError, match="it hung up"):
        receive_exactly(second.incoming(0), memoryview(arrived))


def test_who_waits_for_a_peer_is_told_that_it_is_gone(open_peer: Open) -> None:
    first, second = open_peer(0), open_peer(1)
    first.outgoing(1)
    second.close()
    with pytest.raises(TransferError, match="peer 1 went away before it sent anything"):
        first.incoming(1)


def test_nothing_is_opened_after_everything_was_given_up(open_peer: Open) -> None:
    first = open_peer(0)
    open_peer(1)
    told: list[str] = []

    def wait() -> None:
        try:
            first.incoming(1)
        except TransferError as error:
            told.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    first.give_up()
    first.give_up()
    waiting.join(60)
    assert told == ["the transfer was given up"]
    with pytest.raises(TransferError):
        first.outgoing(1)


def test_a_connection_made_before_is_not_handed_out_after_everything_was_given_up(open_peer: Open) -> None:
    first = open_peer(0)
    open_peer(1)
    first.outgoing(1)
    first.give_up()
    with pytest.raises(TransferError, match="the transfer was given up"):
        first.outgoing(1)


def test_a_caller_without_a_name_is_hung_up_on(open_peer: Open) -> None:
    called = open_peer(1, False)
    own = called._own
    with socket.create_connection((own.host, own.port)) as caller:
        caller.settimeout(20)
        assert len(caller.recv(CHALLENGE)) == CHALLENGE
        until(lambda: called._reception.callers, "the call is taken")
        called.close()
        assert caller.recv(1) == b""


def test_peers_on_different_machines_use_tcp(open_peer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    far = open_peer(0)
    monkeypatch.setattr(module, "machine", lambda: "another")
    near = open_peer(1)
    assert near.outgoing(0).family == far.outgoing(1).family == socket.AF_INET


@pytest.mark.parametrize(
    "greeting", [b"", b"x", b"x" * INTRODUCTION, introduction(b"y" * 32, 0, b"z" * CHALLENGE, b"z" * CHALLENGE)]
)
def test_strangers_are_refused_and_disturb_nobody(open_peer: Open, greeting: bytes) -> None:
    first, second = open_peer(0, False), open_peer(1, False)
    own, before = second._own, strangers["refused"]
    with socket.create_connection((own.host, own.port)) as stranger:
        stranger.sendall(greeting)
        stranger.shutdown(socket.SHUT_WR)
        stranger.settimeout(20)
        heard = [len(part) for part in iter(lambda: stranger.recv(1000), b"")]
        assert sum(heard) == CHALLENGE, "he hears a challenge, and then nothing"
    assert strangers["refused"] == before + 1
    assert crosses(first, second, 0, b"12345")


def test_an_unknown_interface_is_said_with_those_that_exist() -> None:
    known = re.escape(", ".join(sorted(psutil.net_if_addrs())))
    with pytest.raises(BadInput, match=rf"stream\.interface: 'ib7' has no IPv4 address .*{known}"):
        Connections(dist.HashStore(), 0, 1, True, "ib7")


def test_the_interface_is_what_peers_connect_to(open_peer: Open) -> None:
    own = open_peer(0)
    assert own._own.host == "127.0.0.1"
    assert own._reception._listeners[0].getsockname()[0] == "127.0.0.1"


def test_nothing_stays_where_the_store_is_closed_meanwhile() -> None:
    """As when the attempt that it is for is given up."""
    # LS-27

    class Closed:
        def set(self, *_: object) -> None:
            raise dist.DistStoreError("it is closed")

    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(dist.DistStoreError, match="it is closed"):
        Connections(Closed(), 0, 2, True, "lo")
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


def test_no_thread_stays(open_peer: Open) -> None:
    # LS-27
    before = threading.active_count()
    first, second = open_peer(0), open_peer(1)
    assert crosses(first, second, 0, b"1")
    first.close()
    second.close()
    assert threading.active_count() == before
