"""Times of several clocks, put in order: hosts' clocks differ, and one may be set while a run goes on. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def never_back(times: Floats) -> Floats:
    """Return times that never go back, for such as may, in the order in which they were written.

    Where some of them contradict each other, the few are believed less than the many: one that is ahead of those after
    it is moved back to them, or those that are behind one before them are moved up to it.
    """
    if len(times) < 2 or bool(np.all(times[1:] >= times[:-1])):
        return times
    up = np.maximum.accumulate(times)
    back = np.minimum.accumulate(times[::-1])[::-1]
    parts = np.concatenate([[0], np.cumsum(up[:-1] <= back[1:])])  # no time of one part contradicts one of another
    ahead, behind = np.bincount(parts, times > back), np.bincount(parts, times < up)
    found: Floats = np.where((ahead < behind)[parts], back, up)
    return found
