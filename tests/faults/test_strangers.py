"""Strangers at every port of a running run: they are counted, and nothing of the run is read, written or held up."""

from __future__ import annotations

import itertools
import os
import socket
import statistics
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import paced_samples
import psutil
import pytest
from coordinator_lab import until
from worker_lab import STARTUP, WorkerLab, job

from liver_slurm.protocol.messages import ResizeRequest
from liver_slurm.rundir.metrics import read_metrics

TURNS = 4
PACE = 0.1
"""Seconds that a step takes at least, the same all the time: that of a test's usual pace grows."""


@pytest.fixture
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[WorkerLab]:
    paced_samples.pace(tmp_path, PACE)
    steps = 4000 if request.node.get_closest_marker("long") else 400
    with closing(WorkerLab(job(tmp_path, steps=steps))) as run:
        run.begin()
        yield run


def ports(run: WorkerLab) -> dict[tuple[str, int], str]:
    """Every TCP port that the run listens on, and whose it is."""
    found = {}
    for name, process in run.processes.items():
        if process.poll() is None:
            for each in psutil.Process(process.pid).net_connections("tcp"):
                if each.status == psutil.CONN_LISTEN:
                    found[each.laddr.ip, each.laddr.port] = name
    return found


def takes(address: tuple[str, int]) -> bool:
    """Whether anybody answers there; gloo does not, once its group's own connections are made."""
    host = "127.0.0.1" if address[0] in ("0.0.0.0", "::") else address[0]
    try:
        socket.create_connection((host, address[1]), timeout=3).close()
    except TimeoutError:
        return False
    return True


def call(address: tuple[str, int], number: int) -> bool:
    """Say something random, and hang up; returns whether anybody took the call."""
    host = "127.0.0.1" if address[0] in ("0.0.0.0", "::") else address[0]
    try:
        with socket.create_connection((host, address[1]), timeout=20) as stranger:
            stranger.sendall(os.urandom(1 + number % 300))
    except OSError:
        return False
    return True


def took(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.4f} s ({', '.join(f'{each:.4f}' for each in seconds)})"


def median_step(run: WorkerLab, first: int, last: int) -> float:
    lines = [line for line in read_metrics(run.run_dir.metrics) if first < line.step <= last]
    return statistics.median(later.start - earlier.start for earlier, later in itertools.pairwise(lines))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1000, pytest.param(100_000, marks=pytest.mark.long)])
def test_random_bytes_at_every_port(lab: WorkerLab, count: int) -> None:
    # LS-33
    lab.real_worker("standby-a")
    lab.committed_to("tp1pp1dp3")
    every = ports(lab)
    assert {"coordinator", "live-0"} <= set(every.values())
    where = {address: name for address, name in every.items() if takes(address)}
    assert len(where) < len(every), "nobody but the run's own workers can connect to gloo"
    taken: dict[str, int] = dict.fromkeys(where.values(), 0)
    calm, fire = list[float](), list[float]()
    for turn in range(TURNS):
        begun = lab.status()["step"]
        lab.wait_step(begun + 20)
        calm.append(median_step(lab, begun, begun + 20))
        begun = lab.status()["step"]
        for number in range(count * turn // TURNS, count * (turn + 1) // TURNS):
            address = list(where)[number % len(where)]
            taken[where[address]] += call(address, number)
        ended = max(lab.status()["step"], begun + 2)
        lab.wait_step(ended)
        fire.append(median_step(lab, begun, ended))
    rejected: dict[str, Any] = lab.status()["rejected"]
    print(f"calls taken: {taken}; refused: {rejected}; a step took {took(calm)}, and {took(fire)} meanwhile")

    # And a reconfiguration goes through as ever.
    assert lab.ask(ResizeRequest(layout="tp1pp1dp2")).ok
    lab.committed_to("tp1pp1dp2")

    def all_are_counted() -> bool:
        counts = lab.status()["rejected"]
        return bool(counts["strangers"] + counts["store_strangers"] >= taken["coordinator"])

    until(all_are_counted, f"{taken['coordinator']} strangers are counted", STARTUP)
    lab.wait_event("strangers_refused", timeout=STARTUP)
    lab.finish()
    assert not lab.events("worker_lost")


@pytest.mark.slow
def test_silent_strangers_do_not_hold_a_reconfiguration_up(lab: WorkerLab) -> None:
    # LS-33
    lab.committed_to("tp1pp1dp2")
    silent = []
    for address in filter(takes, ports(lab)):
        host = "127.0.0.1" if address[0] in ("0.0.0.0", "::") else address[0]
        silent += [socket.create_connection((host, address[1]), timeout=20) for _ in range(40)]
    try:
        lab.real_worker("standby-a")
        lab.committed_to("tp1pp1dp3")
    finally:
        for each in silent:
            each.close()
    until(lambda: lab.status()["rejected"]["strangers"] >= 40, "they are counted")
    lab.finish()
