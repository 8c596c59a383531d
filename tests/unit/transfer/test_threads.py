"""Threads that move state leave training's alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.transfer import threads


def test_training_keeps_its_team_though_it_has_not_computed_yet() -> None:
    code = """
import torch
from liver_slurm.bench.jobs import SIZES, job
from liver_slurm.parallel.layout import Layout
from liver_slurm.transfer import threads
from liver_slurm.worker.device import choose_device
from pathlib import Path
choose_device(job(SIZES[0], Path("/nowhere"), Layout(1, 1, 1), distributed_optimizer=False))
with threads.pool(2) as pool:
    print(pool.submit(torch.get_num_threads).result(), torch.get_num_threads())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"OMP_NUM_THREADS": "3"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "3"]


@given(st.lists(st.integers(), max_size=40))
def test_each_item_is_taken_once(items: list[int]) -> None:
    def take(some: Iterator[int]) -> list[int]:
        return list(some)

    with threads.pool(3) as pool:
        taken = [item for done in threads.spread(pool, take, items) for item in done.result()]
    assert sorted(taken) == sorted(items)
