"""The control channel over real sockets: who is let in, what is dropped, and how a worker follows its coordinator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.auth
from coordinator_lab import until

from liver_slurm.base.errors import ControlError
from liver_slurm.protocol.client import request
from liver_slurm.protocol.messages import (
    Abort,
    Alive,
    Commit,
    Finished,
    Heartbeat,
    Leave,
    Notice,
    Register,
    Reply,
    StatusRequest,
    ToWorker,
    Welcome,
)
from liver_slurm.protocol.server import ControlServer
from liver_slurm.protocol.wire import encode
from liver_slurm.protocol.worker_channel import WorkerChannel
from liver_slurm.rundir import address, keys
from liver_slurm.rundir.paths import RunDir

HELLO = Register(run_id="r", worker="w", role="live", host="h", pid=1, job_id="1", device="cpu")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    keys.create(tmp_path / "secrets")
    return RunDir(tmp_path)


@pytest.fixture
def start(run_dir: RunDir) -> Iterator[Callable[[int], ControlServer]]:
    servers: list[ControlServer] = []

    def make(epoch: int) -> ControlServer:
        servers.append(ControlServer(run_dir, epoch, "127.0.0.1", bind="127.0.0.1"))
        servers[-1].publish()
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def channel(run_dir: RunDir) -> Iterator[WorkerChannel]:
    one = WorkerChannel(run_dir, lambda: HELLO)
    yield one
    one.close(linger=0)


def receive_all(server: ControlServer, channel: WorkerChannel | None, count: int) -> list[tuple[bytes, object]]:
    received: list[tuple[bytes, object]] = []

    def look() -> bool:
        if channel is not None:
            channel.poll(0.01)
        received.extend(server.receive(0.01))
        return len(received) >= count

    until(look, f"{count} messages")
    return received


def receive(server: ControlServer, channel: WorkerChannel | None = None) -> tuple[bytes, object]:
    (message,) = receive_all(server, channel, 1)
    return message


def hear(channel: WorkerChannel) -> list[ToWorker]:
    return until(lambda: channel.poll(0.05), "a message for the worker")


def stranger(server: ControlServer, *, public: bytes, secret: bytes, server_key: bytes | None) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        if server_key is not None:
            socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = public, secret, server_key
        before = server.rejected["strangers"]
        socket.connect(server.address.endpoint)
        socket.send(encode(StatusRequest()))

        def counted() -> bool:
            assert server.receive(0.02) == [], "a stranger's message got through"
            return server.rejected["strangers"] > before

        until(counted, "the stranger is counted")


def test_strangers_are_kept_out_and_counted(run_dir: RunDir, start: Callable[[int], ControlServer]) -> None:
    # LS-16
    server = start(1)
    pair = zmq.curve_keypair()
    own = keys.load(run_dir.secrets)
    stranger(server, public=pair[0], secret=pair[1], server_key=own.server.public)
    stranger(server, public=b"", secret=b"", server_key=None)
    # A wrong idea of the server's key fails before anything is said.
    stranger(server, public=own.client.public, secret=own.client.secret, server_key=zmq.curve_keypair()[0])


def test_malformed_frames_are_counted(run_dir: RunDir, start: Callable[[int], ControlServer]) -> None:
    server, pairs = start(1), keys.load(run_dir.secrets)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.curve_publickey, socket.curve_secretkey = pairs.client.public, pairs.client.secret
        socket.curve_serverkey = pairs.server.public
        socket.connect(server.address.endpoint)
        socket.send(b"\x80\x04K\x01.")  # a pickle
        socket.send(encode(Leave(epoch=1, reason="not for the coordinator")))
        socket.send_multipart([b"two", b"frames"])
        socket.send(encode(StatusRequest()))
        assert isinstance(receive(server)[1], StatusRequest)
    assert server.rejected["malformed"] == 3


def test_a_client_gets_its_answer_or_one_clear_line(
    run_dir: RunDir, start: Callable[[int], ControlServer], tmp_path: Path
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with pytest.raises(ControlError, match="has not started yet"):
        request(run_dir, StatusRequest())
    server = start(1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(request, run_dir, StatusRequest())
        peer, message = receive(server)
        assert isinstance(message, StatusRequest)
        server.send(peer, Reply(ok=True, result={"step": 3}))
        assert asked.result(10).result == {"step": 3}
    with pytest.raises(ControlError, match=r"did not answer within 0\.2 s"):
        request(run_dir, StatusRequest(), timeout=0.2)


def test_messages_to_a_peer_that_is_gone_are_counted(start: Callable[[int], ControlServer]) -> None:
    server = start(1)
    server.send(b"nobody", Leave(epoch=1, reason=""))
    assert server.rejected["undelivered"] == 1


def test_a_worker_registers_before_it_says_anything_else(
    start: Callable[[int], ControlServer], channel: WorkerChannel
) -> None:
    beat = Heartbeat(worker="w", generation=-1, step=0, step_seconds=0.0, warm=False)
    channel.send(beat)
    server = start(1)
    peer, message = receive(server, channel)
    assert message == HELLO
    server.send(peer, Welcome(run_id="r", epoch=1))
    assert receive(server, channel)[1] == beat
    assert channel.epoch == 1


def test_late_messages_of_another_epoch_are_dropped(
    start: Callable[[int], ControlServer], channel: WorkerChannel
) -> None:
    server = start(2)
    peer, _ = receive(server, channel)
    server.send(peer, Welcome(run_id="r", epoch=2))
    server.send(peer, Commit(epoch=1, generation=4, step=9))
    server.send(peer, Abort(epoch=2, generation=4, reason="x"))
    assert hear(channel) == [Abort(epoch=2, generation=4, reason="x")]
    assert channel.rejected == 1


def unstamped(message: Any, since: float) -> Any:
    """The message as it was given to the channel, which says in a notice when it is sent."""
    if not isinstance(message, Notice):
        return message
    assert since - 1.0 <= message.sent <= time.time()
    return msgspec.structs.replace(message, sent=0.0)


def test_a_restarted_coordinator_is_found_and_told_what_it_may_have_missed(
    start: Callable[[int], ControlServer], channel: WorkerChannel
) -> None:
    first = start(1)
    peer, _ = receive(first, channel)
    first.send(peer, Welcome(run_id="r", epoch=1))
    until(lambda: channel.poll(0.01) == [] and channel.epoch == 1, "welcome")
    notice = Notice(worker="w", reason="SIGTERM", time=1.0)
    finished = Finished(worker="w", step=7)
    channel.send(notice)
    channel.send(finished)
    begun = time.time()
    assert [unstamped(message, begun) for _, message in receive_all(first, None, 2)] == [notice, finished]
    second = start(2)  # the first is still there, but its address is not
    silent_since = time.monotonic()
    peer, message = receive(second, channel)
    assert message == HELLO
    begun = time.time()
    second.send(peer, Welcome(run_id="r", epoch=2))
    assert [unstamped(message, begun) for _, message in receive_all(second, channel, 2)] == [notice, finished]
    assert channel.epoch == 2
    assert channel.seconds_since_contact <= time.monotonic() - silent_since


def test_a_coordinator_that_does_not_know_the_worker_makes_it_register_again(
    start: Callable[[int], ControlServer], channel: WorkerChannel
) -> None:
    server = start(1)
    peer, _ = receive(server, channel)
    server.send(peer, Welcome(run_id="r", epoch=1))
    until(lambda: channel.poll(0.01) == [] and channel.epoch == 1, "welcome")
    server.send(peer, Alive(epoch=1))
    server.send(peer, Alive(epoch=2))
    assert receive(server, channel)[1] == HELLO


def test_a_wake_up_descriptor_ends_the_wait(channel: WorkerChannel) -> None:
    import os

    read, write = os.pipe()
    os.write(write, b"x")
    began = time.monotonic()
    assert channel.poll(10.0, (read,)) == []
    assert time.monotonic() - began < 5
    os.close(read)
    os.close(write)


def test_the_address_is_private(run_dir: RunDir, start: Callable[[int], ControlServer]) -> None:
    server = start(1)
    assert run_dir.address_file.stat().st_mode & 0o777 == 0o600
    assert address.read(run_dir.address_file) == server.address
