"""Samples that hold whole documents, as many as fit: which parts of which documents each of them has.

Best-fit decreasing (Johnson 1974; of documents, Ding et al. 2024) within windows of documents that lie together: the
longest first, each goes to the fullest sample that has room for it. A function of the documents' lengths alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Packing(NamedTuple):
    """What samples hold: sample k the parts ``ends[k - 1]`` to ``ends[k] - 1``, in the order of their documents."""

    starts: NDArray[np.int64]
    """First token of each part in the data."""
    lengths: NDArray[np.int64]
    """Tokens of each part."""
    ends: NDArray[np.int64]
    """One past each sample's last part."""

    def parts(self, sample: int) -> list[tuple[int, int]]:
        """Return first token and length of each part of a sample."""
        rows = slice(int(self.ends[sample - 1]) if sample else 0, int(self.ends[sample]))
        return list(zip(self.starts[rows].tolist(), self.lengths[rows].tolist(), strict=True))


def pack(documents: NDArray[np.int64], seq_length: int, window: int) -> Packing:
    """Pack documents, of these lengths one after the other, into samples of ``seq_length + 1`` tokens.

    A longer one is cut into parts of that length, of which neighbours share a token, so that each is predicted once;
    what remains is packed. What has no token that could be predicted is left out.

    Args:
        window: documents that are packed together.
    """
    import numpy as np

    numbers, starts, lengths = _parts(np.asarray(documents, dtype=np.int64), seq_length)
    order, counts = [], []
    for first in range(0, len(documents), window):
        begin, end = np.searchsorted(numbers, (first, first + window))
        for sample in _best_fit(lengths[begin:end], seq_length + 1):
            order += [begin + part for part in sample]
            counts.append(len(sample))
    rows = np.array(order, dtype=np.int64)
    return Packing(starts[rows], lengths[rows], np.cumsum(counts, dtype=np.int64))


def _parts(
    documents: NDArray[np.int64], seq_length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return each part's document, first token and length."""
    import numpy as np

    from liver_slurm.reshard.rank_sets import spans

    counts = np.maximum(documents - 2, -1) // seq_length + 1
    numbers = np.repeat(np.arange(len(documents), dtype=np.int64), counts)
    place = spans(np.zeros_like(counts), counts)
    starts = (np.cumsum(documents) - documents)[numbers] + place * seq_length
    lengths = np.minimum(documents[numbers] - place * seq_length, seq_length + 1)
    return numbers, starts, lengths


def _best_fit(lengths: NDArray[np.int64], room: int) -> list[list[int]]:
    """Return which of a window's parts each sample has, each sample's in their order."""
    import numpy as np

    samples: list[list[int]] = []
    left: list[list[int]] = [[] for _ in range(room + 1)]
    """Samples, by how much room each has left."""
    some: list[int] = []
    """Those of its indices that have some, sorted."""
    for part in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[part])
        place = bisect_left(some, length)
        if place == len(some):
            number, rest = len(samples), room - length
            samples.append([part])
        else:
            space = some[place]
            number, rest = left[space].pop(), space - length
            if not left[space]:
                del some[place]
            samples[number].append(part)
        if rest > 1:  # the shortest part has two tokens
            if not left[rest]:
                insort(some, rest)
            left[rest].append(number)
    return [sorted(sample) for sample in samples]
