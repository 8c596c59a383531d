"""Tensor parallel groups of a target world, formed from members: on one host each where the hosts allow it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.rank_sets import NOBODY, Ints

TpGroups = Ints
"""[groups, tp]: numbers of the members of each group, by tensor parallel rank."""


def form_groups(source: Layout, target_tp: int, rank: Ints, host: Ints) -> TpGroups:
    """Put all members into groups of ``target_tp``.

    As many groups as possible are on one host. Members that were in one group stay together, each on a tensor parallel
    rank whose part of the matrices it has, as far as that goes.

    Args:
        source: layout of the world that members come from.
        target_tp: tensor parallel size of the target.
        rank: source rank of each member, or :data:`NOBODY`.
        host: number of each member's host.
    """
    members = sorted(range(len(rank)), key=lambda member: (rank[member] == NOBODY, rank[member], member))
    pools: dict[int, list[int]] = defaultdict(list)
    for member in members:
        pools[int(host[member])].append(member)
    ranks = rank.tolist()
    tp_groups: list[list[int]] = []
    rest: list[int] = []
    for pool in pools.values():
        formed, left = _form(source, target_tp, pool, ranks)
        tp_groups += formed
        rest += left
    formed, _ = _form(source, target_tp, rest, ranks)
    return np.array(tp_groups + formed, dtype=np.int64).reshape(-1, target_tp)


def _form(source: Layout, target_tp: int, pool: list[int], ranks: list[int]) -> tuple[list[list[int]], list[int]]:
    """Form as many full groups as a pool has members for, and who is left over: joiners rather than survivors."""
    tp_groups = [[NOBODY] * target_tp for _ in range(len(pool) // target_tp)]
    placed: set[int] = set()
    begin = 0
    for unit, several in _units(source, target_tp, pool, ranks):
        end = min(begin + several, len(tp_groups))
        placed.update(_seat(source, tp_groups[begin:end], unit, ranks))
        begin = end
    # Survivors whose old group got no group of its own take what suits them, then all others what is left.
    waiting = [member for member in pool if member not in placed]
    survivors = [member for member in waiting if ranks[member] != NOBODY]
    placed.update(_seat(source, tp_groups, survivors, ranks))
    others = iter([member for member in waiting if member not in placed])
    for tp_group in tp_groups:
        for seat, member in enumerate(tp_group):
            if member == NOBODY:
                tp_group[seat] = next(others)
    return tp_groups, list(others)


def _units(source: Layout, target_tp: int, pool: list[int], ranks: list[int]) -> Iterable[tuple[list[int], int]]:
    """Yield the survivors that were neighbours, the fullest units first, and how many groups they make.

    Neighbours make one group of the target where that is at least as wide as the source's, else several.
    """
    width, several = (target_tp, 1) if target_tp >= source.tp else (source.tp, source.tp // target_tp)
    units: dict[int, list[int]] = defaultdict(list)
    for member in pool:
        if ranks[member] != NOBODY:
            units[ranks[member] // width].append(member)
    for unit in sorted(units.values(), key=lambda unit: -len(unit)):  # stable: else by rank
        yield unit, min(several, len(unit))


def _seat(source: Layout, tp_groups: list[list[int]], members: list[int], ranks: list[int]) -> list[int]:
    """Give each member a free seat whose part of the matrices overlaps its own; who got one."""
    if not tp_groups:
        return []
    seats = len(tp_groups[0])
    free: list[list[int]] = [[] for _ in range(seats)]
    for number in range(len(tp_groups) - 1, -1, -1):
        for seat, member in enumerate(tp_groups[number]):
            if member == NOBODY:
                free[seat].append(number)
    seated = []
    # From the first tensor parallel rank to the last: those that fit several seats leave the later ones to others.
    for tp, _, member in sorted((source.coordinate("tp", ranks[member]), ranks[member], member) for member in members):
        for seat in range(tp * seats // source.tp, -(-(tp + 1) * seats // source.tp)):
            if free[seat]:
                tp_groups[free[seat].pop()][seat] = member
                seated.append(member)
                break
    return seated
