"""Many sets of ranks in two arrays: a world of 16,384 ranks has tens of thousands; objects for them would be slow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

NOBODY = -1
"""Stands for the source rank of a worker that has none."""


def spans(first: Ints, count: Ints) -> Ints:
    """Return ``first[0], first[0] + 1, … (count[0] numbers), first[1], …``."""
    begin = np.cumsum(count) - count
    return np.repeat(first - begin, count) + np.arange(int(count.sum()), dtype=np.int64)


def sums(keys: Ints, values: Ints) -> tuple[Ints, Ints]:
    """Return distinct keys, sorted, and the sum of each one's values."""
    distinct, inverse = np.unique(keys, return_inverse=True)
    total = np.zeros(len(distinct), dtype=np.int64)
    np.add.at(total, inverse, values)
    return distinct, total


@dataclass(frozen=True, eq=False)
class RankSets(Sequence[Ints]):
    """Set i is ``ranks[bounds[i]:bounds[i + 1]]``, sorted; a sequence of such arrays."""

    ranks: Ints
    bounds: Ints

    @classmethod
    def of(cls, sets: Sequence[Sequence[int] | Ints]) -> RankSets:
        """Make sets from one array for each."""
        flat = np.concatenate([np.zeros(0, np.int64), *(np.asarray(members, np.int64) for members in sets)])
        return cls.sized(flat, np.array([len(members) for members in sets], dtype=np.int64))

    @classmethod
    def sized(cls, ranks: Ints, sizes: Ints) -> RankSets:
        """Make sets from all members, set after set, and the number of each set's members."""
        return cls(ranks, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]))

    @property
    def sizes(self) -> Ints:
        """Members of each set."""
        return np.diff(self.bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, number: int) -> Ints:  # type: ignore[override]  # sets are never sliced
        return self.ranks[self.bounds[number] : self.bounds[number + 1]]

    def __iter__(self) -> Iterator[Ints]:
        return (self[number] for number in range(len(self)))

    def __add__(self, other: RankSets) -> RankSets:
        return RankSets(
            np.concatenate([self.ranks, other.ranks]),
            np.concatenate([self.bounds, other.bounds[1:] + self.bounds[-1]]),
        )

    def members(self, numbers: Ints) -> tuple[Ints, Ints]:
        """Return all members of the sets ``numbers``: for each, its place in ``numbers``, and the rank."""
        count = self.sizes[numbers]
        place = np.repeat(np.arange(len(numbers), dtype=np.int64), count)
        return place, self.ranks[spans(self.bounds[numbers], count)]


class RankMembership:
    """Answers which ranks are in which of many sets."""

    def __init__(self, sets: RankSets, ranks: int) -> None:
        self._ranks = ranks
        self._codes = np.repeat(np.arange(len(sets), dtype=np.int64), sets.sizes) * ranks + sets.ranks

    def contains(self, number: Ints, rank: Ints) -> npt.NDArray[np.bool_]:
        """Return whether each ``rank`` is in the set numbered beside it; a negative rank is in none."""
        wanted = number * self._ranks + rank
        at = np.minimum(np.searchsorted(self._codes, wanted), len(self._codes) - 1)
        return np.asarray((self._codes[at] == wanted) & (rank >= 0), dtype=bool)
