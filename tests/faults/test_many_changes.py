"""A worker that changes worlds again and again, as it does in a month, keeps nothing of those that are over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from coordinator_lab import until
from worker_lab import STARTUP, WorkerLab, job

from liver_slurm.config.schema import ElasticSection
from liver_slurm.control.messages import ResizeRequest

LAYOUTS = ("tp1pp2dp1", "tp2pp1dp1")  # the first is what policy would choose


@pytest.fixture
def run(tmp_path: Path) -> Iterator[WorkerLab]:
    with closing(
        WorkerLab(job(tmp_path, steps=1_000_000, elastic=ElasticSection(initial=LAYOUTS[0], settle=0.1)))
    ) as lab:
        lab.begin()
        lab.committed_to(LAYOUTS[0])
        yield lab


def change(run: WorkerLab, times: int) -> None:
    """There and back so many times."""
    for layout in itertools.islice(itertools.cycle(LAYOUTS[::-1]), 2 * times):
        assert run.ask(ResizeRequest(layout=layout)).ok
        run.committed_to(layout)


def test_threads_and_connections_do_not_grow(run: WorkerLab) -> None:
    live = [psutil.Process(run.pid(name)) for name in ("live-0", "live-1")]

    def held() -> list[int]:
        return [count for process in live for count in (process.num_threads(), process.num_fds())]

    change(run, 1)
    most = held()  # with what the last world still gives back
    change(run, 2)
    until(lambda: all(now <= then for now, then in zip(held(), most, strict=True)), f"no more than {most}", STARTUP)
