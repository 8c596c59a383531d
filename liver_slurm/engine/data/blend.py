"""Which data set each sample of a blend is from: a function of the weights and the sample's number.

The order repeats after as many samples as the shares' whole numbers need, so it is computed once for that many, and
nothing grows with the run.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Blend:
    """Order of the data sets, each of which has its share of any first n samples, within less than one sample."""

    def __init__(self, parts: Sequence[int]) -> None:
        """``parts``: samples of each data set in one period, see :func:`liver_slurm.config.blend.blend_parts`."""
        import numpy as np

        self.parts = tuple(parts)
        self.period = sum(parts)
        self._order = _order(self.parts)
        starts = np.cumsum(self.parts)[:-1]
        self._slots = np.split(np.argsort(self._order, kind="stable"), starts)

    def sets(self, first: int, count: int) -> NDArray[np.int64]:
        """Return the numbers of the data sets that samples ``first`` to ``first + count - 1`` are from."""
        import numpy as np

        return self._order[np.arange(first, first + count, dtype=np.int64) % self.period].astype(np.int64)

    def taken(self, which: int, count: int) -> int:
        """Return how many of the first ``count`` samples are from a data set."""
        periods, slot = divmod(count, self.period)
        return periods * self.parts[which] + int(self._slots[which].searchsorted(slot))

    def place(self, which: int, number: int) -> int:
        """Return the place in the blend of a data set's ``number``-th sample, counted from 0."""
        periods, inner = divmod(number, self.parts[which])
        return periods * self.period + int(self._slots[which][inner])


@lru_cache(maxsize=8)
def _order(parts: tuple[int, ...]) -> NDArray[np.int32]:
    """Return the data set of each sample of one period.

    A proportionate fair schedule (Baruah, Cohen, Plaxton, Varvel 1996): the j-th sample of a data set with share w may
    not come before slot floor((j - 1) / w), and has to come before ceil(j / w). Of those that may, the one that has to
    come first is taken; with these windows no sample is ever late, so no share is ever off by one. Taking whichever
    data set is farthest behind, as Megatron does, has no such bound with more than a few sets.
    """
    import numpy as np

    period = sum(parts)
    order = np.empty(period, dtype=np.int32)
    made = [0] * len(parts)
    later = [(0, which) for which in range(len(parts))]
    ready: list[tuple[int, int]] = []
    for slot in range(period):
        while later and later[0][0] <= slot:
            which = heapq.heappop(later)[1]
            heapq.heappush(ready, (-(-(made[which] + 1) * period // parts[which]), which))
        which = heapq.heappop(ready)[1]
        order[slot] = which
        made[which] += 1
        if made[which] < parts[which]:
            heapq.heappush(later, (made[which] * period // parts[which], which))
    return order
