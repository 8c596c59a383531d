"""Digests of the boxes that two workers share, or that move within one: what both ends compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor

from liver_slurm.transfer.checksum import digests, signed
from liver_slurm.transfer.digest_plan import DigestPlan
from liver_slurm.transfer.shared_box import SharedBox


class BoxDigests:
    """Digests of lists of boxes, planned when it is made and taken once the boxes hold what is to be proven."""

    def __init__(self, lists: Iterable[Sequence[SharedBox]], pool: Executor | None = None) -> None:
        """
        Args:
            lists: a box that is in several of them is one object, and is read once.
            pool: shares boxes in host memory out among its threads; None: the calling thread reads them.
        """
        self._lists, self._pool = list(lists), pool
        self._boxes = list({id(box): box for some in self._lists for box in some}.values())
        views = [view for box in self._boxes for view in box.state]
        self._plan = DigestPlan(views) if views and views[0].is_cuda else None

    def take(self) -> list[list[int]]:
        """Return, for each list, a 64-bit digest of each view of each box, as signed numbers: as torch stores them.

        On a card they are computed in the current stream, and waited for.
        """
        if self._plan is not None:
            flat = iter(self._plan.launch().result())
            words = [[next(flat) for _ in box.state] for box in self._boxes]
        elif self._pool is not None:
            words = list(self._pool.map(lambda box: digests(box.state), self._boxes))
        else:
            words = [digests(box.state) for box in self._boxes]
        found = {id(box): list(map(signed, each)) for box, each in zip(self._boxes, words, strict=True)}
        return [[word for box in some for word in found[id(box)]] for some in self._lists]
