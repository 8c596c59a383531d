"""Threads that move state: each computes for itself.

A thread that calls torch has a team of OpenMP threads of its own, as large as training's. Several such teams are more
threads than there are cores, and those that have nothing to do spin at the cores that the others wait for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

_MOST = 8
"""More fill no memory bus any better."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def alone() -> None:
    """Let the calling thread compute without a team; threads that have one keep it."""
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


def pool(size: int) -> ThreadPoolExecutor:
    """Return a pool of so many threads, alone each."""
    return ThreadPoolExecutor(size, "pool", initializer=alone)


def idle_size() -> int:
    """Return how many threads have cores while training stands, or waits: its team's on a CPU, and the control thread.

    Beside training that computes on all cores of its team they are about as many again, where liver-slurm has chosen
    the team: half of the cores.
    """
    return min(_MOST, int(os.environ.get("OMP_NUM_THREADS", "1")) + 1)


def idle() -> ThreadPoolExecutor:
    """Return a pool of as many threads as :func:`idle_size` says."""
    return pool(idle_size())


def spread(
    pool: ThreadPoolExecutor, work: Callable[[Iterator[Item]], Result], items: Sequence[Item]
) -> list[Future[Result]]:
    """Have all threads of a pool work on ``items``: each takes the next one that nobody has.

    ``work`` may find nothing left.
    """
    waiting = iter(items)  # of a sequence: threads may ask it at the same time
    return [pool.submit(work, waiting) for _ in range(min(_MOST, len(items)))]
