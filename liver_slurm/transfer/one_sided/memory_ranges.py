"""Ranges of memory that a strided box consists of, as the kernel takes them: arrays of ``struct iovec``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from liver_slurm.transfer.one_sided.description import View

Ranges = NDArray[np.uint64]
"""[n, 2]: address and bytes of each range."""

MOST = 1024
"""Ranges of one call (``IOV_MAX``)."""


def contiguous_run(view: View) -> int:
    """Return the elements of each contiguous range that a view consists of: the product of its innermost axes."""
    run = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size != 1:
            if stride != run:
                break
            run *= size
    return run


def ranges(view: View, run: int | None = None) -> Ranges:
    """Cut a view into ranges of ``run`` elements in row-major order.

    Args:
        run: a product of the innermost axes, :func:`contiguous_run` at most, which is the default.

    Returns:
        [n, 2]: address and bytes of each.
    """
    run = contiguous_run(view) if run is None else run
    inner = 1
    outer = len(view.shape)
    while inner < run:
        outer -= 1
        inner *= view.shape[outer]
    starts = np.zeros(1, dtype=np.int64)
    for size, stride in zip(view.shape[:outer], view.strides[:outer], strict=True):
        starts = (starts[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
    found = np.empty((len(starts), 2), dtype=np.uint64)
    found[:, 0], found[:, 1] = view.address + starts * view.itemsize, run * view.itemsize
    return found


def single(address: int, nbytes: int) -> Ranges:
    """Return one range."""
    return np.array([[address, nbytes]], dtype=np.uint64)


def advance(some: Ranges, done: int) -> tuple[int, int]:
    """Return how far a call came that carried ``done`` bytes of these ranges.

    It is whole ranges, and bytes of the next one.
    """
    ends = np.cumsum(some[:, 1])
    whole = int(np.searchsorted(ends, done, side="right"))
    return whole, done - (int(ends[whole - 1]) if whole else 0)


def behind(some: Ranges, whole: int, begun: int) -> Ranges:
    """Return what is left of ranges behind what :func:`advance` found."""
    rest = some[whole:]
    if begun:
        rest = rest.copy()
        rest[0, 0] += np.uint64(begun)
        rest[0, 1] -= np.uint64(begun)
    return rest
