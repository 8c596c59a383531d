"""How much each owner of a replicated region sends, so that the hottest sender is as cool as it can be.

Integers only: every rank computes the shares for itself, and all must come to the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from liver_slurm.state.holdings import Ints

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


def shares(owners: Sequence[Ints], amounts: Mapping[int, int], ranks: int) -> tuple[dict[int, Ints], Ints]:
    """Divide each owner set's bytes among its members.

    Owner sets may overlap (norms are on all tensor parallel ranks, tied embeddings on two stages), so each set is
    poured again over what the others have put, until nothing moves. This is block coordinate descent on the sum of
    squared loads, whose minimum is also the one with the coolest hottest sender.

    Args:
        owners: ranks of each owner set.
        amounts: bytes that each owner set has to send.
        ranks: ranks of the source world.

    Returns:
        Bytes of each member of each owner set, in the set's order; and bytes that each rank sends, [ranks].
    """
    load = np.zeros(ranks, dtype=np.int64)
    result: dict[int, Ints] = {}
    choices: list[int] = []
    for owner in sorted(amounts):
        if len(owners[owner]) == 1:
            result[owner] = np.array([amounts[owner]], dtype=np.int64)
            load[owners[owner]] += amounts[owner]
        else:
            choices.append(owner)
    # Small sets have the least freedom: pour them first, and the larger ones even out what they leave.
    choices.sort(key=lambda owner: (len(owners[owner]), owner))
    for sweep in range(_SWEEPS):
        moved = 0
        for owner in choices:
            members = owners[owner]
            before = result.get(owner)
            if before is not None:
                load[members] -= before
            result[owner] = fill(load[members], amounts[owner])
            load[members] += result[owner]
            if before is not None:
                moved = max(moved, int(np.abs(result[owner] - before).max()))
        if sweep and moved <= max(1, int(load.max()) // 10_000):
            break
    return result, load


def max_over_mean(owners: Sequence[Ints], parts: Mapping[int, Ints], load: Ints) -> float:
    """How uneven senders are where replicas leave a choice; 1 is even.

    For each owner set of :func:`shares`: bytes that the hottest of those that serve it sends in all, over the mean of
    what all its members send in all, whoever serves. The greatest of these; ranks without replicas do not count, since
    nothing could be taken from them.
    """
    worst = 1.0
    for owner, part in parts.items():
        sent = load[owners[owner]]
        worst = max(worst, float(sent[part > 0].max(initial=0)) / float(sent.mean()))
    return worst
