"""How much each owner of a replicated region sends, so that the hottest owner is as cool as it can be.

Integers only: every rank computes the shares for itself, and all must come to the same ones.
"""

from __future__ import annotations

import numpy as np

from liver_slurm.reshard.rank_sets import Ints, RankSets

_SWEEPS = 64


def fill(load: Ints, amount: int) -> Ints:
    """Pour ``amount`` bytes onto loads so that the highest ends as low as it can: what each gets.

    Like water into a vessel of uneven floor. Bytes that do not divide go to the first ones.
    """
    order = np.argsort(load, kind="stable")
    floor = load[order]
    # needed[k - 1]: what it takes to bring the k lowest up to the level of the next one.
    count = np.arange(1, len(floor), dtype=np.int64)
    needed = count * floor[1:] - np.cumsum(floor)[:-1]
    wet = int(np.searchsorted(needed, amount, side="left")) + 1
    level, rest = divmod(int(floor[:wet].sum()) + amount, wet)
    share = np.zeros(len(floor), dtype=np.int64)
    share[:wet] = level - floor[:wet]
    share[:rest] += 1
    result = np.empty_like(share)
    result[order] = share
    return result


def shares(owners: RankSets, amounts: Ints, ranks: int) -> tuple[Ints, Ints]:
    """Divide each owner set's bytes among its members.

    Owner sets may overlap (norms are on all tensor parallel ranks, tied embeddings on two stages), so each set is
    poured again over what the others have put, until nothing moves. This is block coordinate descent on the sum of
    squared loads, whose minimum is also the one with the coolest hottest owner.

    Args:
        owners: ranks of each owner set.
        amounts: bytes that each owner set has to send.
        ranks: ranks of the source world.

    Returns:
        Bytes of each member of each owner set, beside ``owners.ranks``; and bytes that each rank sends, [ranks].
    """
    part = np.zeros(len(owners.ranks), dtype=np.int64)
    load = np.zeros(ranks, dtype=np.int64)
    sizes = owners.sizes
    alone = np.flatnonzero((sizes == 1) & (amounts > 0))
    part[owners.bounds[alone]] = amounts[alone]
    np.add.at(load, owners.ranks[owners.bounds[alone]], amounts[alone])
    # Small sets have the least freedom: pour them first, and the larger ones even out what they leave.
    choices = sorted(np.flatnonzero((sizes > 1) & (amounts > 0)).tolist(), key=lambda owner: (sizes[owner], owner))
    for sweep in range(_SWEEPS):
        moved = 0
        for owner in choices:
            place = slice(int(owners.bounds[owner]), int(owners.bounds[owner + 1]))
            members, before = owners.ranks[place], part[place].copy()
            load[members] -= before
            part[place] = fill(load[members], int(amounts[owner]))
            load[members] += part[place]
            moved = max(moved, int(np.abs(part[place] - before).max()))
        if sweep and moved <= max(1, int(load.max()) // 10_000):
            break
    return part, load


def max_over_mean(owners: RankSets, part: Ints, load: Ints) -> float:
    """Return how uneven senders are where replicas leave a choice; 1 is even.

    For each owner set that sends: bytes that the hottest of those that serve it sends in all, over the mean of what
    all its members send in all, whoever serves. The greatest of these; ranks without replicas do not count, since
    nothing could be taken from them.
    """
    begin, count = owners.bounds[:-1], owners.sizes
    sends = np.add.reduceat(part, begin) > 0
    sent = load[owners.ranks]
    hottest = np.maximum.reduceat(np.where(part > 0, sent, 0), begin)[sends]
    mean = np.add.reduceat(sent, begin)[sends] / count[sends]
    return float((hottest / mean).max(initial=1.0))


def least_hottest(owners: RankSets, amounts: Ints, ranks: int) -> float:
    """Return the bytes that the hottest owner sends at least, whoever serves what.

    That is what one rank alone can send; or what a set has to send, and each of its members alone, over its members.
    """
    sending = np.flatnonzero(amounts)
    alone = sending[owners.sizes[sending] == 1]
    forced = np.zeros(ranks, dtype=np.int64)
    np.add.at(forced, owners.ranks[owners.bounds[alone]], amounts[alone])
    together = np.add.reduceat(forced[owners.ranks], owners.bounds[:-1])
    shared = sending[owners.sizes[sending] > 1]
    return max(float(forced.max(initial=0)), float(((amounts + together) / owners.sizes)[shared].max(initial=0.0)))
