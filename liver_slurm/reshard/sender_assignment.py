"""Streams: what each owner set has to send to whom, and which of its members serves which bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from liver_slurm.reshard.intersections import Regions
from liver_slurm.reshard.rank_sets import Ints, RankMembership, RankSets, spans, sums

_STRIPES, _STRIPE = 4, 1 << 20
"""A row is cut into stripes: so many at most, since each may be a connection of its own; of so many bytes at least."""

Place = Sequence[str]
"""Where a worker is, from the widest to the narrowest: (rack, host), or (host,)."""


@dataclass(frozen=True)
class Streams:
    """A row for each (owner set, receiver that must be served by another worker), sorted by owner set, then receiver.

    ``size``: bytes of the row.
    """

    owner: Ints
    receiver: Ints
    size: Ints

    def row(self, owner: int, receiver: int) -> int:
        """Return the row of an owner set and a receiver, which must exist."""
        first, last = np.searchsorted(self.owner, [owner, owner + 1])
        return int(first + np.searchsorted(self.receiver[first:last], receiver))


def build_streams(regions: Regions, owned: RankMembership, kept: Ints) -> Streams:
    """Return what must be sent.

    Args:
        regions: the transfer.
        owned: membership in ``regions.owners``.
        kept: for every target rank, its worker's source rank or :data:`~.rank_sets.NOBODY`.
    """
    # Regions of the same owners and receivers differ in nothing that matters here but their bytes.
    pairs, amounts = sums(regions.owner * len(regions.receivers) + regions.receiver, regions.size * regions.unit)
    owner, receiving = np.divmod(pairs, len(regions.receivers))
    place, receiver = regions.receivers.members(receiving)
    owner, amounts = owner[place], amounts[place]
    remote = ~owned.contains(owner, kept[receiver]) & (amounts > 0)
    row, size = sums(owner[remote] * len(kept) + receiver[remote], amounts[remote])
    owner, receiver = np.divmod(row, len(kept))
    return Streams(owner, receiver, size)


@dataclass(frozen=True)
class Service:
    """Who serves which bytes of a stream's row: sorted by row, then by position in it.

    ``sender``: source rank; ``end``: where its part ends in the row's bytes; it begins where the one before ends.
    """

    row: Ints
    sender: Ints
    end: Ints

    def of(self, row: int) -> tuple[Ints, Ints]:
        """(ends, senders) of one row."""
        first, last = np.searchsorted(self.row, [row, row + 1])
        return self.end[first:last], self.sender[first:last]

    def rows_of(self, sender: int) -> Ints:
        """Return the rows that a source rank serves, wholly or in part."""
        return np.asarray(self.row[self.sender == sender], dtype=np.int64)


def serve(streams: Streams, owners: RankSets, part: Ints, near: Sequence[tuple[Ints, Ints]]) -> Service:
    """Match what owners are to send with what receivers need.

    Args:
        streams: what must be sent.
        owners: ranks of each owner set.
        part: bytes that each of ``owners.ranks`` sends; of each set together what its rows need.
        near: places from the nearest to the farthest, such as host, then rack; each as the number of the place of every
            source rank and of every target rank. Senders serve receivers of the same place first, as far as their
            bytes go, then those of the next wider place, then any.
    """
    number = np.repeat(np.arange(len(owners), dtype=np.int64), owners.sizes)
    sending = np.flatnonzero(part)
    sender, sender_set = owners.ranks[sending], number[sending]
    offered, wanted = part[sending].copy(), streams.size.copy()
    found: list[tuple[Ints, Ints, Ints]] = []
    anywhere = np.zeros(max(int(side.max(initial=0)) for side in (owners.ranks, streams.receiver)) + 1, dtype=np.int64)
    for source_place, target_place in (*near, (anywhere, anywhere)):
        places = int(max(source_place.max(initial=0), target_place.max(initial=0))) + 1
        giving = sender_set * places + source_place[sender]
        taking = streams.owner * places + target_place[streams.receiver]
        stripe, size = _stripes(giving[offered > 0], taking, wanted)
        giver, at, amount = _match(giving, offered, taking[stripe], size)
        taker = stripe[at]
        found.append((giver, taker, amount))
        np.subtract.at(offered, giver, amount)
        np.subtract.at(wanted, taker, amount)
    giver, taker, amount = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(taker, kind="stable")
    giver, taker, amount = giver[order], taker[order], amount[order]
    end = np.cumsum(amount)
    before = np.cumsum(streams.size) - streams.size
    served_by = sender[giver]
    # Stripes that lie side by side and come from one sender are one part: no box is cut between them.
    last = np.append((taker[1:] != taker[:-1]) | (served_by[1:] != served_by[:-1]), True)[: len(taker)]
    return Service(taker[last], served_by[last], (end - before[taker])[last])


def _stripes(giving: Ints, taking: Ints, wanted: Ints) -> tuple[Ints, Ints]:
    """Cut what takers want into stripes, the first stripes of all first: (taker, bytes).

    So one sender serves the same bytes of several takers, which as replicas mostly want the same: it has to stage and
    hash them once. And each taker is served by several. ``giving``, ``taking``: as for :func:`_match`.
    """
    giving = np.sort(giving)
    senders = np.searchsorted(giving, taking, side="right") - np.searchsorted(giving, taking)
    count = np.clip(wanted // _STRIPE, 1, np.clip(senders, 1, _STRIPES))
    taker = np.repeat(np.arange(len(wanted), dtype=np.int64), count)
    number = spans(np.zeros_like(count), count)
    size = wanted[taker] // count[taker] + (number < wanted[taker] % count[taker])
    order = np.argsort(number, kind="stable")
    return taker[order], size[order]


def _match(giving: Ints, offered: Ints, taking: Ints, wanted: Ints) -> tuple[Ints, Ints, Ints]:
    """Match, in each group, as many bytes as both sides have, in order: (giver, taker, bytes).

    ``giving``, ``taking``: group of each giver and taker; ``offered``, ``wanted``: their bytes.
    """
    groups, group = np.unique(np.concatenate([giving, taking]), return_inverse=True)
    sides = []
    for numbers, amounts in ((group[: len(giving)], offered), (group[len(giving) :], wanted)):
        order = np.argsort(numbers, kind="stable")
        total = np.zeros(len(groups), dtype=np.int64)
        np.add.at(total, numbers, amounts)
        sides.append((order, numbers[order], amounts[order], total))
    both = np.minimum(sides[0][3], sides[1][3])
    ends = []
    for _, numbers, amounts, total in sides:
        before = np.cumsum(amounts) - amounts - (np.cumsum(total) - total)[numbers]
        ends.append(np.cumsum(np.clip(both[numbers] - before, 0, amounts)))
    edges = np.unique(np.concatenate([np.zeros(1, np.int64), *ends]))
    giver, taker = (
        order[np.searchsorted(end, edges[1:], side="left")] for (order, *_), end in zip(sides, ends, strict=True)
    )
    return giver, taker, np.diff(edges)
