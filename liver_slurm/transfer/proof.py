"""Digests of the boxes that two workers share, as both ends compare them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor

from liver_slurm.transfer.checksum import digests, signed
from liver_slurm.transfer.shared_box import SharedBox


def digests_of(lists: Iterable[Sequence[SharedBox]], pool: Executor | None = None) -> list[list[int]]:
    """For each list of boxes, a 64-bit digest of each view of each box, as signed numbers: as torch stores them.

    Args:
        lists: a box that is in several of them is one object, and is read once.
        pool: shares the boxes out among its threads; None: this thread does it, and waits for a card but once.
    """
    lists = list(lists)
    boxes = list({id(box): box for some in lists for box in some}.values())
    if pool is not None:
        words = list(pool.map(lambda box: digests(box.state), boxes))
    else:
        flat = iter(digests([view for box in boxes for view in box.state]))
        words = [[next(flat) for _ in box.state] for box in boxes]
    found = {id(box): list(map(signed, each)) for box, each in zip(boxes, words, strict=True)}
    return [[word for box in some for word in found[id(box)]] for some in lists]
