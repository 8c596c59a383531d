"""A worker that changes worlds again and again, as it does in a month, keeps nothing of those that are over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from worker_lab import WorkerLab, job

from liver_slurm.config.schema import ElasticSection
from liver_slurm.protocol.messages import ResizeRequest

pytestmark = pytest.mark.slow

LAYOUTS = ("tp1pp2dp1", "tp2pp1dp1")  # the first is what policy would choose
CHANGES = 6


@pytest.fixture
def run(tmp_path: Path) -> Iterator[WorkerLab]:
    config = job(tmp_path, steps=1_000_000, elastic=ElasticSection(initial=LAYOUTS[0], settle=0.1))
    with closing(WorkerLab(config)) as lab:
        lab.begin()
        lab.committed_to(LAYOUTS[0])
        yield lab


def change(run: WorkerLab, times: int) -> None:
    """To the other layout so many times."""
    for layout in itertools.islice(itertools.cycle(LAYOUTS[::-1]), times):
        assert run.ask(ResizeRequest(layout=layout)).ok
        run.committed_to(layout)


def test_threads_and_connections_do_not_grow(run: WorkerLab) -> None:
    # LS-27
    live = [psutil.Process(run.pid(name)) for name in ("live-0", "live-1")]

    def held() -> list[int]:
        return [count for process in live for count in (process.num_threads(), process.num_fds())]

    change(run, 2)
    before = held()
    change(run, CHANGES)
    # A process group that stays has three threads and five files. The last world's may stay until the next change.
    assert [now - then < 2 * CHANGES for now, then in zip(held(), before, strict=True)] == [True] * 4, (before, held())
