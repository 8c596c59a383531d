"""How the mirrors of a world are kept, by what host memory there is: a copy of each rank's state, or parity. Pure.

Parity is kept of a group of owners on different hosts, by a peer on another one: the exclusive or of their snapshots.
It takes as much room as one of them, of which each of k owners has a k-th to pay for. But it can only be refreshed, and
every owner keeps its own snapshot besides: two of them if they are sent beside training.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, takewhile, zip_longest
from typing import Literal, NamedTuple

from liver_slurm.reshard.mirrors import keepers

SEVERAL = 2
"""Owners of the smallest group that parity is kept of."""
EVERY = 50
"""Steps between two refreshes where none are asked for, and snapshots are sent."""


class Group(NamedTuple):
    """Ranks whose snapshots are folded into one, and the rank that keeps it."""

    owners: tuple[int, ...]
    keeper: int


class Means(NamedTuple):
    """What one rank has."""

    machine: str
    """Ranks with the same one share its memory."""
    available: int
    """Bytes of host memory that are left there."""
    state: int
    """Bytes of its masters, moments and weights that are not trained."""


@dataclass(frozen=True)
class Choice:
    """How mirrors are kept, and why."""

    kind: Literal["updates", "copies", "parity", "none"]
    """Copies that are current to the last update, copies that are refreshed, or parity, which is."""
    group: int
    """Owners of one mirror."""
    every: int
    """Steps between two refreshes; 0: there are none."""
    reason: str
    beside: bool = False
    """What is refreshed is sent beside training, which costs memory, and not while training waits."""

    @property
    def told(self) -> str:
        """For people."""
        if self.kind == "none":
            return "none"
        if self.kind == "updates":
            return "copies, current to the last update"
        what = f"parity of {self.group}" if self.kind == "parity" else "copies"
        return f"{what}, refreshed every {self.every} steps" if self.every > 1 else f"{what}, refreshed each step"


def groups(hosts: Sequence[str], most: int) -> list[Group]:
    """Divide the ranks of a world into groups of at most so many, and say who keeps what of each.

    Owners of one group are on different hosts where there are several, and their keeper on yet another where there are
    enough. No group is larger than it has to be for there to be as few of them.

    Args:
        hosts: host of each rank, of at least two; empty where it is not known.
        most: owners of one group, less than there are ranks.
    """
    if most == 1:
        return [Group((rank,), keeper) for rank, keeper in enumerate(keepers(hosts))]
    size, several = len(hosts), len(set(hosts)) > 1
    evenly = -(-size // -(-size // most))
    by_host: dict[str, list[int]] = defaultdict(list)
    for rank, host in enumerate(hosts):
        by_host[host].append(rank)
    found: list[list[int]] = []
    for rank in chain.from_iterable(zip_longest(*by_host.values())):
        if rank is None:
            continue
        last = found[-1] if found else []
        if not last or len(last) == evenly or (several and hosts[rank] in (hosts[other] for other in last)):
            found.append([])
        found[-1].append(rank)
    keeps: Counter[int] = Counter()
    there: Counter[str] = Counter()
    placed = []
    for owners in found:
        theirs = {hosts[rank] for rank in owners}
        keeper = min(
            (rank for rank in range(size) if rank not in owners),
            key=lambda rank: (hosts[rank] in theirs, keeps[rank], there[hosts[rank]], (rank - owners[-1]) % size),
        )
        keeps[keeper] += 1
        there[hosts[keeper]] += 1
        placed.append(Group(tuple(owners), keeper))
    return placed


def largest_group(hosts: Sequence[str]) -> int:
    """Return the most owners of one mirror, so that one host that fails takes one of them or the
    keeper, and no more."""
    different = len(set(hosts))
    return different - 1 if different > 1 else len(hosts) - 1


def takes(
    choice: Choice, states: Sequence[int], placed: Sequence[Group], machines: Sequence[str] | None = None
) -> list[int]:
    """Return the bytes of host memory that each rank takes.

    Args:
        states: bytes of each rank's state: 12 of 16 that a mirror with gradients takes of it.
        machines: of the ranks; None: each has its own.
    """
    updates = choice.kind == "updates"
    # Gradients on their way, or a snapshot; two where one is sent beside training.
    own = [state // 3 if updates else state * (2 if choice.beside else 1) for state in states]
    for group in placed:
        if choice.beside and _shared(group, machines):
            continue
        largest = max(states[rank] for rank in group.owners)
        own[group.keeper] += largest + largest // 3 if updates else 2 * largest
    return own


def _shared(group: Group, machines: Sequence[str] | None) -> bool:
    """Return whether a keeper only maps the snapshots of its owner, see
    :mod:`liver_slurm.transfer.mirror.shared_place`."""
    return machines is not None and len(group.owners) == 1 and machines[group.owners[0]] == machines[group.keeper]


def choose(
    ranks: Sequence[Means],
    hosts: Sequence[str],
    every: int = 0,
    group: int = 0,
    on_cards: bool = False,
    replayed: bool = True,
) -> Choice:
    """Choose how the mirrors of a world are kept: the way that loses least and fits into half of what is left.

    Args:
        ranks, hosts: of the world, by rank.
            May be empty if ``group`` is not 0.
        every: steps between two refreshes that are asked for; 0: none.
        group: owners of one mirror that are asked for; 0: by what memory there is.
        on_cards: training is not to wait for host memory and the network, whatever is chosen for want of memory.
        replayed: updates can be made again where only gradients are sent.
    """
    most, machines = largest_group(hosts), [rank.machine for rank in ranks]
    if every or on_cards or not replayed:
        in_one = on_cards and ranks and all(_shared(each, machines) for each in groups(hosts, 1))
        copies = Choice("copies", 1, every or (1 if in_one else EVERY), "", beside=True)
    else:
        copies = Choice("updates", 1, 0, "")

    def parity(size: int) -> Choice:
        return Choice("parity", size, every or EVERY, "", beside=on_cards)

    if group:
        asked = min(group, most)
        chosen = copies if asked < SEVERAL else parity(asked)
        fewer = f", of {group} that recovery.mirror_group asks for" if asked < group else ""
        return _because(chosen, f"{asked} owners a mirror{fewer}, as there are {most + 1} places")
    tried: list[str] = []
    for one in (copies, *map(parity, _sizes(most))):
        short = _short(one, ranks, hosts)
        if not short:
            return _because(one, "; ".join([*tried[:1], f"{_named(one)} have room" if tried else "there is room"]))
        tried.append(f"{_named(one)} take {short}")
    return Choice("none", 0, 0, "; ".join(dict.fromkeys([tried[0], tried[-1]])))


def _sizes(most: int) -> list[int]:
    """Return the sizes of groups to be tried: each twice the one before, as there may be thousands, and the largest."""
    found = list(takewhile(lambda size: size < most, (SEVERAL << power for power in count())))
    return [*found, most] if most >= SEVERAL else []


def _because(choice: Choice, reason: str) -> Choice:
    return replace(choice, reason=reason)


def _named(choice: Choice) -> str:
    return f"parities of {choice.group}" if choice.kind == "parity" else "copies"


def _short(choice: Choice, ranks: Sequence[Means], hosts: Sequence[str]) -> str:
    """Return which machine has no room for it; empty: all have."""
    machines = [rank.machine for rank in ranks]
    needed = takes(choice, [rank.state for rank in ranks], groups(hosts, choice.group), machines)
    by_machine: Counter[str] = Counter()
    room: dict[str, int] = {}
    where: dict[str, str] = {}
    for rank, nbytes, host in zip(ranks, needed, hosts, strict=True):
        by_machine[rank.machine] += nbytes
        room[rank.machine] = min(rank.available, room.get(rank.machine, rank.available))
        where.setdefault(rank.machine, host)
    for machine, nbytes in by_machine.items():
        if nbytes > room[machine] // 2:
            return f"{nbytes} bytes on {where[machine] or 'one host'}, which has {room[machine]} to spare"
    return ""
