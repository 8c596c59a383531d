"""Gradients on their way: each thread has its share, and the peak is the sum of what is there at a time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from liver_slurm.transfer.one_sided.staging import Staging

PATIENCE = 60.0


@pytest.mark.parametrize(("nbytes", "threads", "share"), [(1000, 3, 333), (1000, 1, 1000), (1, 9, 4)])
def test_threads_share_the_limit(nbytes: int, threads: int, share: int) -> None:
    assert Staging(nbytes, threads).share == share, "one element at least"


def test_the_peak_is_that_of_all_threads_together() -> None:
    # LS-23
    staging, together = Staging(100, 4), threading.Barrier(4)

    def use(nbytes: int) -> None:
        with staging.use(nbytes):
            together.wait(PATIENCE)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            for done in [pool.submit(use, nbytes) for nbytes in (10, 20, 25, 5)]:
                done.result(PATIENCE)
    assert staging.peak_bytes == 60


def test_what_failed_is_given_back() -> None:
    staging = Staging(100, 1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), staging.use(70):
            raise ZeroDivisionError
    assert staging.peak_bytes == 70
