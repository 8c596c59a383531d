"""Strangers at a data connection's port: they are counted, and no peer notices."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import pytest
import torch.distributed as dist
from coordinator_lab import PATIENCE, until

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer import greeting, reception
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.greeting import CHALLENGE, INTRODUCTION, answer_to, introduction
from liver_slurm.transfer.reception import strangers

Open = Callable[[int], Connections]
TOKEN = b"t" * 32


@pytest.fixture
def open_peer() -> Iterator[Open]:
    """Opens one of three peers of this process, which meet over TCP."""
    store = dist.HashStore()
    with ExitStack() as opened:
        yield lambda me: opened.enter_context(closing(Connections(store, me, 3, False, "lo")))


def call(peer: Connections) -> socket.socket:
    stranger = socket.create_connection((peer._own.host, peer._own.port))
    stranger.settimeout(PATIENCE)
    return stranger


def hears(stranger: socket.socket, length: int) -> bytes:
    heard = b""
    while len(heard) < length and (part := stranger.recv(length - len(heard))):
        heard += part
    return heard


def assert_they_meet(one: Connections, other: Connections) -> None:
    with ThreadPoolExecutor(2) as pool:
        here, there = pool.submit(one.outgoing, other._me), pool.submit(other.incoming, one._me)
        here.result(PATIENCE).sendall(b"hello")
        assert hears(there.result(PATIENCE), 5) == b"hello"


# ---- the greeting --------------------------------------------------------------------------------------------------


def test_a_peer_is_known_by_its_proof() -> None:
    answer = answer_to(TOKEN, b"o" * CHALLENGE, introduction(TOKEN, 2, b"o" * CHALLENGE, b"n" * CHALLENGE))
    assert answer is not None
    assert answer[0] == 2


@pytest.mark.parametrize("byte", [0, 4, 40, INTRODUCTION - 1])
def test_a_changed_byte_is_no_proof(byte: int) -> None:
    said = bytearray(introduction(TOKEN, 2, b"o" * CHALLENGE, b"n" * CHALLENGE))
    said[byte] ^= 1
    assert answer_to(TOKEN, b"o" * CHALLENGE, bytes(said)) is None


def test_what_was_overheard_is_worth_nothing_the_next_time() -> None:
    overheard = introduction(TOKEN, 2, b"o" * CHALLENGE, b"n" * CHALLENGE)
    assert answer_to(TOKEN, greeting.challenge(), overheard) is None
    assert TOKEN not in overheard


def test_whoever_has_a_dead_peers_address_gets_nothing(open_peer: Open) -> None:
    peer = open_peer(0)
    with socket.create_server(("127.0.0.1", 0)) as impostor:
        record = type(peer._own)("127.0.0.1", impostor.getsockname()[1], "", "elsewhere", TOKEN)
        peer._store.set("1", msgspec.msgpack.encode(record))
        heard: list[bytes] = []

        def listen() -> None:
            caller, _ = impostor.accept()
            caller.sendall(os.urandom(CHALLENGE))
            heard.append(hears(caller, INTRODUCTION))
            caller.sendall(os.urandom(32))
            heard.append(hears(caller, 1))

        with ThreadPoolExecutor(1) as pool:
            listening = pool.submit(listen)
            with pytest.raises(TransferError, match="whoever listens there is somebody else"):
                peer.outgoing(1)
            listening.result(PATIENCE)
    assert heard[1] == b"", "no state"
    assert TOKEN not in heard[0]


# ---- callers -------------------------------------------------------------------------------------------------------


def test_nobody_is_taken_for_a_peer_without_its_proof(open_peer: Open) -> None:
    first, second = open_peer(0), open_peer(1)
    with call(first) as stranger:
        said = hears(stranger, CHALLENGE)
        stranger.sendall(introduction(b"guess" + bytes(27), 1, said, bytes(32)))
        assert hears(stranger, 1) == b""
    assert 1 not in first._arrived
    assert_they_meet(second, first)


def test_a_silent_caller_is_hung_up_on(open_peer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "CALLER_SECONDS", 0.2)
    peer, before = open_peer(0), strangers["silent"]
    with call(peer) as silent, call(peer) as dribbling:
        dribbling.sendall(b"x")
        for stranger in (silent, dribbling):
            assert len(hears(stranger, 1000)) == CHALLENGE, "it is told a challenge, then hung up on"
    assert strangers["silent"] == before + 2


def test_a_crowd_of_callers_is_kept_small(open_peer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "MOST_CALLERS", 5)
    first, second, before = open_peer(0), open_peer(1), strangers["crowd"]
    with ExitStack() as crowd:
        for _ in range(50):
            crowd.enter_context(call(first))
        until(lambda: strangers["crowd"] >= before + 42, "the oldest are hung up on")
        assert len(first._reception.callers) <= 8
        assert_they_meet(second, first)


def test_another_users_process_is_not_heard(open_peer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, before = open_peer(0), strangers["refused"]
    monkeypatch.setattr(reception, "same_user", lambda _connection: False)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(PATIENCE)
        stranger.connect(f"\0{peer._own.local}")
        assert hears(stranger, 1) == b""
    assert strangers["refused"] == before + 1


def test_a_watcher_that_fails_leaves_nobody_waiting(open_peer: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_peer(0)
    second = open_peer(1)

    def broken() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(first._reception, "look", broken)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(first.incoming, 1)
        with call(first), pytest.raises(TransferError):
            waiting.result(PATIENCE)
    assert second is not first


def test_give_up_ends_an_introduction(open_peer: Open) -> None:
    peer = open_peer(0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        record = type(peer._own)("127.0.0.1", mute.getsockname()[1], "", "elsewhere", TOKEN)
        peer._store.set("1", msgspec.msgpack.encode(record))
        with ThreadPoolExecutor(1) as pool:
            dialling = pool.submit(peer.outgoing, 1)
            until(lambda: peer._introducing, "it waits for a word")
            peer.give_up()
            with pytest.raises(TransferError):
                dialling.result(PATIENCE)


@pytest.mark.parametrize("count", [1000, pytest.param(100_000, marks=pytest.mark.long)])
def test_random_bytes_change_nothing(open_peer: Open, count: int) -> None:
    first, second = open_peer(0), open_peer(1)
    before, begun = strangers.total(), time.monotonic()
    for number in range(count):
        with socket.create_connection((first._own.host, first._own.port)) as stranger:
            stranger.sendall(os.urandom(1 + number % 200))
    until(lambda: strangers.total() == before + count, "all are counted")
    print(f"{count} strangers refused in {time.monotonic() - begun:.1f} s: {dict(strangers)}")
    assert_they_meet(second, first)
    assert threading.active_count() < 20


FEW_FILES = """
import os, resource, socket, sys
sys.path.insert(0, sys.argv[1])
import torch.distributed as dist
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.reception import strangers
store = dist.HashStore()
first = Connections(store, 0, 2, False, "lo")
second = Connections(store, 1, 2, False, "lo")
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, 4096))
print(first._own.port, flush=True)
sys.stdin.readline()  # the strangers are there
open("/dev/null").close()
first_sees = []
import threading
t = threading.Thread(target=lambda: first_sees.append(first.incoming(1)))
t.start()
second.outgoing(0).sendall(b"hello")
t.join()
assert first_sees[0].recv(5) == b"hello"
print(dict(strangers), flush=True)
"""


def test_silent_strangers_do_not_take_the_last_file_descriptor(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 300
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FEW_FILES, str(Path(reception.__file__).parents[3])]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process,
        ExitStack() as crowd,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        for _ in range(200):
            crowd.enter_context(socket.create_connection(("127.0.0.1", port)))
        process.stdin.write("\n")
        process.stdin.flush()
        said = process.stdout.readline()
        assert process.wait(PATIENCE) == 0
    assert "crowd" in said or "silent" in said
