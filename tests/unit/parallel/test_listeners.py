"""gloo's ports are closed to strangers once a group's connections are made."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from liver_slurm.parallel import listeners

PATIENCE = timedelta(seconds=60)
SHORT = 0.3
"""Seconds in which a connection to this machine would long be made."""


def ports() -> set[int]:
    """All that this process listens on."""
    found = psutil.Process().net_connections("tcp")
    return {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}


def takes(port: int, host: str) -> bool:
    try:
        socket.create_connection((host, port), timeout=SHORT).close()
    except TimeoutError:
        return False
    return True


def summed(groups: list[Any]) -> list[float]:
    def one(group: Any) -> float:
        value = torch.ones(1)
        group.allreduce([value]).wait()
        return float(value)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, groups))


@pytest.fixture
def one_host(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    return "127.0.0.1"


def test_nobody_reaches_gloo_once_a_group_is_made(one_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # LS-33
    def make(rank: int, store: Any, name: str) -> Any:
        return dist.ProcessGroupGloo(dist.PrefixStore(name, store), rank, 2, timeout=PATIENCE)

    def both(name: str) -> list[Any]:
        store = dist.HashStore()
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda rank: make(rank, store, name), range(2)))

    before = ports()
    open_ones = both("open")
    theirs = ports() - before
    assert theirs, "gloo listens"
    assert all(takes(port, one_host) for port in theirs), "and takes whoever calls"
    server = listeners.create_server((one_host, 0), 8)
    held = psutil.Process().num_fds()
    more = both("more")
    each = psutil.Process().num_fds() - held
    held, known = held + each, ports()
    with listeners.closed_afterwards():
        groups = both("closed")
        ours = listeners.create_server((one_host, 0), 8)
    assert psutil.Process().num_fds() == held + each + 1, "of its own it leaves none open"
    closed = ports() - known - {ours.getsockname()[1]}
    assert closed
    assert not any(takes(port, one_host) for port in closed)
    assert takes(server.getsockname()[1], one_host)
    assert takes(ours.getsockname()[1], one_host), "what another thread of ours listens on stays open"
    assert summed(groups) == [2.0, 2.0], "its own connections stay"
    assert summed(open_ones) == [2.0, 2.0]
    with listeners.closed_afterwards():
        assert summed(both("others")) == [2.0, 2.0], "more groups can be made"
    assert summed(more) == [2.0, 2.0]
    for one in (server, ours):
        one.close()


def test_only_what_began_in_the_block_is_closed(one_host: str) -> None:
    with socket.create_server((one_host, 0)) as plain, listeners.closed_afterwards():
        assert takes(plain.getsockname()[1], one_host)
    with socket.create_server((one_host, 0)) as plain:
        with listeners.closed_afterwards():
            pass
        assert takes(plain.getsockname()[1], one_host)
    with listeners.closed_afterwards():
        another = socket.create_server((one_host, 0))
    assert takes(another.getsockname()[1], one_host), "nobody waits for its callers as gloo does"
    another.close()
