"""The rendezvous store: what torch asks of a store, for holders of the run's keys and nobody else."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
import zmq
from coordinator_lab import PATIENCE, until

from liver_slurm.parallel import c10d
from liver_slurm.protocol.rendezvous import Answer, KeyValues, Operation, Request, decode_answer, encode
from liver_slurm.protocol.rendezvous_client import RendezvousStore, StoreError
from liver_slurm.protocol.rendezvous_server import RendezvousServer
from liver_slurm.rundir import keys
from liver_slurm.rundir.paths import RunDir

LONG = timedelta(seconds=PATIENCE)
Dial = Callable[..., RendezvousStore]

# ---- the table -----------------------------------------------------------------------------------------------------


def ask(table: KeyValues, operation: Operation, *names: str, now: float = 0.0, peer: bytes = b"p", **more: Any) -> Any:
    """Answers to one request, by peer."""
    return list(table.handle(peer, Request(7, operation, list(names), **more), now))


def test_a_value_is_had_by_whoever_waits_for_it() -> None:
    table = KeyValues()
    assert ask(table, "get", "a", "b", peer=b"q", patience=5.0) == []
    assert ask(table, "wait", "b", peer=b"r", patience=5.0) == []
    assert ask(table, "set", "a", values=[b"1"]) == [(b"p", Answer(7))]
    assert ask(table, "set", "b", values=[b"2"]) == [
        (b"p", Answer(7)),
        (b"q", Answer(7, [b"1", b"2"])),
        (b"r", Answer(7)),
    ]
    assert ask(table, "get", "b", "a") == [(b"p", Answer(7, [b"2", b"1"]))]


def test_nobody_waits_for_ever() -> None:
    table = KeyValues()
    ask(table, "get", "a", "b", now=10.0, patience=5.0)
    assert list(table.expire(14.9)) == []
    assert list(table.expire(15.0)) == [(b"p", Answer(7, error="nobody has set 'a' in 5 s"))]
    assert list(table.expire(99.0)) == []
    assert ask(table, "set", "a", values=[b"1"]) == [(b"p", Answer(7))], "and nothing is left of it"


def test_counters_and_the_like() -> None:
    table = KeyValues()
    assert ask(table, "add", "n", amount=3) == [(b"p", Answer(7, amount=3))]
    assert ask(table, "add", "n", amount=-1) == [(b"p", Answer(7, amount=2))]
    assert ask(table, "get", "n") == [(b"p", Answer(7, [b"2"]))]
    ask(table, "append", "s", values=[b"ab"])
    assert ask(table, "append", "s", values=[b"c"]) == [(b"p", Answer(7, amount=3))]
    assert ask(table, "check", "n", "s") == [(b"p", Answer(7, amount=1))]
    assert ask(table, "check", "n", "no") == [(b"p", Answer(7, amount=0))]
    assert ask(table, "count") == [(b"p", Answer(7, amount=2))]
    assert ask(table, "compare_set", "c", values=[b"", b"new"]) == [(b"p", Answer(7, [b"new"]))]
    assert ask(table, "compare_set", "c", values=[b"other", b"x"]) == [(b"p", Answer(7, [b"new"]))]
    assert ask(table, "compare_set", "c", values=[b"new", b"x"]) == [(b"p", Answer(7, [b"x"]))]
    assert ask(table, "delete", "c") == [(b"p", Answer(7, amount=1))]
    assert ask(table, "delete", "c") == [(b"p", Answer(7, amount=0))]


def test_it_does_not_grow_beyond_its_capacity() -> None:
    table = KeyValues(capacity=10)
    ask(table, "set", "a", values=[b"x" * 10])
    ((_, answer),) = ask(table, "append", "a", values=[b"y"])
    assert answer.error == "the store is full: it holds 10 bytes at most"
    assert ask(table, "get", "a") == [(b"p", Answer(7, [b"x" * 10]))]
    ask(table, "set", "a", values=[b""])
    assert ask(table, "set", "b", values=[b"z" * 10]) == [(b"p", Answer(7))]


# ---- as torch's store ----------------------------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path)
    keys.create(run_dir.secrets)
    return run_dir


@pytest.fixture
def server(run_dir: RunDir) -> Iterator[RendezvousServer]:
    with closing(RendezvousServer(run_dir, "127.0.0.1")) as server:
        yield server


@pytest.fixture
def dial(run_dir: RunDir, server: RendezvousServer) -> Iterator[Callable[..., RendezvousStore]]:
    with ExitStack() as opened:

        def dial_one(patience: timedelta = LONG) -> RendezvousStore:
            return opened.enter_context(closing(RendezvousStore(run_dir, "127.0.0.1", server.port, patience)))

        yield dial_one


def test_torch_takes_it_for_one_of_its_own(dial: Dial) -> None:
    scope, other = dist.PrefixStore("scope/", dial()), dist.PrefixStore("scope/", dial())
    scope.set("key", "value")
    assert other.get("key") == b"value"
    assert scope.add("n", 2) == 2
    assert other.add("n", 3) == 5
    assert scope.check(["key", "n"])
    assert not scope.check(["none"])
    scope.multi_set(["x", "y"], [b"1", b"2"])
    assert other.multi_get(["y", "x"]) == [b"2", b"1"]
    other.wait(["x"], timedelta(seconds=5))
    other.append("x", "0")
    assert scope.get("x") == b"10"
    assert scope.compare_set("x", "10", "11") == b"11"
    assert scope.delete_key("x")
    with pytest.raises(RuntimeError, match="nobody has set 'scope//none' in 0 s"):
        scope.wait(["none"], timedelta(milliseconds=1))


def test_process_groups_are_made_over_it(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    before = psutil.Process().num_fds()
    stores = [dial(), dial()]

    def member(rank: int) -> Any:
        # One process cannot register both ranks' groups under a name; their keys lie in one scope all the same.
        scope = dist.PrefixStore("group/", stores[rank])
        return dist.ProcessGroupGloo(scope, rank, 2, timeout=LONG)

    with ThreadPoolExecutor(2) as pool:
        groups = list(pool.map(member, range(2)))
        for store in stores:
            store.close()
        tensors = [torch.full((3,), float(rank + 1)) for rank in range(2)]
        list(pool.map(lambda rank: groups[rank].allreduce([tensors[rank]]).wait(), range(2)))
    assert all(bool((tensor == 3).all()) for tensor in tensors)
    assert not stores[0].check(["group/0"]), "a group that still looks finds nothing"
    groups.clear()
    until(lambda: psutil.Process().num_fds() <= before + 4, "the connections are given back")


def test_a_group_of_our_own_is_made_over_it(dial: Dial) -> None:
    group = c10d.make_group(dial(), "rendezvous/one", [0], 0, "gloo", LONG, torch.device("cpu"))
    tensor = torch.ones(1)
    dist.all_reduce(tensor, group=group)
    c10d.destroy_group(group)


def test_threads_do_not_wait_for_each_other(dial: Dial) -> None:
    store = dial()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.get, "late")
        assert store.add("n", 1) == 1
        store.set("late", b"x")
        assert waiting.result(PATIENCE) == b"x"


def test_whoever_waits_is_thrown_out_when_it_is_closed(dial: Dial) -> None:
    store = dial()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.get, "never")
        until(lambda: store._calls == 1, "it waits")
        store.close()
        with pytest.raises(StoreError, match="was closed"):
            waiting.result(PATIENCE)
    with pytest.raises(StoreError, match="was closed"):
        store.set("a", "b")


def test_a_store_that_is_gone_is_said_at_once(run_dir: RunDir) -> None:
    server = RendezvousServer(run_dir, "127.0.0.1")
    with closing(RendezvousStore(run_dir, "127.0.0.1", server.port, LONG)) as store, ThreadPoolExecutor(1) as pool:
        store.set("a", "b")
        waiting = pool.submit(store.get, "never")
        until(lambda: store._calls == 1 and server._table._waiting, "it waits")
        server.close()
        with pytest.raises(StoreError, match="has hung up"):
            waiting.result(PATIENCE)


def test_a_store_that_breaks_down_ends_who_has_it(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise KeyError("peer")

    with closing(RendezvousServer(run_dir, "127.0.0.1")) as server:
        server.check()
        monkeypatch.setattr(server._table, "handle", breaks)
        with closing(RendezvousStore(run_dir, "127.0.0.1", server.port, LONG)) as store:
            with pytest.raises(StoreError):
                store.set("a", "b")
            until(lambda: not server._thread.is_alive(), "it has ended")
        with pytest.raises(RuntimeError, match="the rendezvous store has broken down") as caught:
            server.check()
        assert isinstance(caught.value.__cause__, KeyError)


def test_nothing_stays(run_dir: RunDir) -> None:
    def round_trip() -> None:
        server = RendezvousServer(run_dir, "127.0.0.1")
        with closing(server), closing(RendezvousStore(run_dir, "127.0.0.1", server.port, LONG)) as store:
            store.set("a", "b")

    round_trip()
    threads, files = threading.active_count(), psutil.Process().num_fds()
    for _ in range(3):
        round_trip()
    assert (threading.active_count(), psutil.Process().num_fds()) == (threads, files)


# ---- strangers -----------------------------------------------------------------------------------------------------


def test_it_listens_where_it_is_told(server: RendezvousServer) -> None:
    listening = [c.laddr for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert [each.ip for each in listening if each.port == server.port] == ["127.0.0.1"]


def test_a_stranger_with_torchs_store_gets_nothing(server: RendezvousServer, dial: Dial) -> None:
    dial().set("generation7/transfer//0", "token")
    with pytest.raises(RuntimeError):
        dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=3)).get(
            "generation7/transfer//0"
        )
    until(lambda: server.strangers, "he is counted")
    assert dial().get("generation7/transfer//0") == b"token"


def test_another_runs_keys_open_nothing(server: RendezvousServer, dial: Dial, tmp_path: Path) -> None:
    other = RunDir(tmp_path / "other")
    keys.create(other.secrets)
    ours, theirs = keys.load(RunDir(tmp_path).secrets), keys.load(other.secrets)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        # He may know the server's public key: it is none of the secrets.
        dealer.curve_serverkey = ours.server.public
        dealer.curve_publickey, dealer.curve_secretkey = theirs.client.public, theirs.client.secret
        dealer.connect(f"tcp://127.0.0.1:{server.port}")
        dealer.send(encode(Request(1, "set", ["a"], [b"garbage"])))
        until(lambda: server.strangers, "he is refused")
        assert not dealer.poll(1000)
    assert not dial().check(["a"])


def test_what_is_no_request_is_dropped(run_dir: RunDir, server: RendezvousServer) -> None:
    pairs = keys.load(run_dir.secrets)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.curve_serverkey = pairs.server.public
        dealer.curve_publickey, dealer.curve_secretkey = pairs.client.public, pairs.client.secret
        dealer.connect(f"tcp://127.0.0.1:{server.port}")
        for message in (b"", os.urandom(100), encode(Request(1, "set", ["a"])), encode(Request(1, "get"))):
            dealer.send(message)
        dealer.send(encode(Request(2, "count")))
        assert dealer.poll(int(PATIENCE * 1000))
        assert decode_answer(dealer.recv()) == Answer(2, amount=0)
    assert server.malformed == 4


@pytest.mark.parametrize("count", [1000, pytest.param(100_000, marks=pytest.mark.long)])
def test_random_bytes_change_nothing(server: RendezvousServer, dial: Dial, count: int) -> None:
    store = dial()
    store.set("a", "b")
    times = []
    for number in range(count):
        with socket.create_connection(("127.0.0.1", server.port)) as stranger:
            stranger.sendall(os.urandom(1 + number % 200))
        if number % 100 == 0:
            begun = time.perf_counter()
            assert store.get("a") == b"b"
            times.append(time.perf_counter() - begun)
    until(lambda: server.strangers >= count, "all are counted")
    print(f"{count} strangers, {server.strangers} counted; an answer took {max(times):.4f} s at most")
    assert store.add("n", 1) == 1
    assert psutil.Process().num_fds() < 500
