"""Streams: all that one owner set has to send, one receiver after the other, as one run of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liver_slurm.state.holdings import Ints
from liver_slurm.state.regions import Regions

NOBODY = -1
"""Stands for a source rank where a target rank's worker has none."""


class Membership:
    """Answers which ranks are in which of many sets."""

    def __init__(self, sets: Sequence[Ints], ranks: int) -> None:
        self._ranks = ranks
        self._codes = np.concatenate([number * ranks + members for number, members in enumerate(sets)])

    def contains(self, number: Ints, rank: Ints) -> npt.NDArray[np.bool_]:
        """Whether each ``rank`` (or :data:`NOBODY`) is in the set numbered beside it."""
        wanted = number * self._ranks + rank
        at = np.minimum(np.searchsorted(self._codes, wanted), len(self._codes) - 1)
        return np.asarray((self._codes[at] == wanted) & (rank != NOBODY), dtype=bool)


@dataclass(frozen=True)
class Streams:
    """A row for each (owner set, receiver that must be served by another worker), sorted by owner set, then receiver.

    ``begin``: where the row begins in its owner set's stream; ``size``: its bytes.
    """

    owner: Ints
    receiver: Ints
    begin: Ints
    size: Ints

    def rows(self, owner: int) -> slice:
        """The rows of one owner set."""
        first, last = np.searchsorted(self.owner, [owner, owner + 1])
        return slice(int(first), int(last))

    def begin_of(self, owner: int, receiver: int) -> int:
        """Where a receiver's part of an owner set's stream begins; the row must exist."""
        rows = self.rows(owner)
        return int(self.begin[rows][np.searchsorted(self.receiver[rows], receiver)])

    def receivers_within(self, owner: int, start: int, end: int) -> Ints:
        """Receivers that have bytes in ``[start, end)`` of an owner set's stream."""
        rows = self.rows(owner)
        begin = self.begin[rows]
        inside = (begin < end) & (begin + self.size[rows] > start)
        return self.receiver[rows][inside]


def build_streams(regions: Regions, owned: Membership, kept: Ints) -> Streams:
    """Lay out what must be sent.

    Args:
        regions: the transfer.
        owned: membership in ``regions.owners``.
        kept: for every target rank, its worker's source rank or :data:`NOBODY`.
    """
    # Regions of the same owners and receivers differ in nothing that matters here but their bytes.
    pair = regions.owner * len(regions.receivers) + regions.receiver
    pairs, amounts = _sums(pair, regions.size * regions.unit)
    owner, receiving = np.divmod(pairs, len(regions.receivers))
    counts = np.array([len(ranks) for ranks in regions.receivers], dtype=np.int64)[receiving]
    receiver = np.concatenate([regions.receivers[number] for number in receiving.tolist()])
    owner, amounts = np.repeat(owner, counts), np.repeat(amounts, counts)
    remote = ~owned.contains(owner, kept[receiver]) & (amounts > 0)
    row, size = _sums(owner[remote] * len(kept) + receiver[remote], amounts[remote])
    owner, receiver = np.divmod(row, len(kept))
    begin = np.cumsum(size) - size
    begin -= begin[np.searchsorted(owner, owner)]
    return Streams(owner, receiver, begin, size)


def _sums(keys: Ints, values: Ints) -> tuple[Ints, Ints]:
    """Distinct keys, sorted, and the sum of each one's values."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    sums = np.zeros(len(distinct), dtype=np.int64)
    np.add.at(sums, inverse, values)
    return distinct, sums
