"""Who keeps a copy of whose state: what no other rank of a world holds has a mirror on another rank. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from liver_slurm.parallel.layout import Layout


class Extent(NamedTuple):
    """How far a mirror can go."""

    step: int
    """It has the state after so many completed steps; -1: it does not have all of it yet."""
    ahead: bool
    """It can go one step further, as it has the gradients of that."""

    def reaches(self, step: int) -> bool:
        """Return whether the state after ``step`` completed steps can be had."""
        return self.step >= 0 and (step == self.step or (self.ahead and step == self.step + 1))


class Difference(NamedTuple):
    """A mirror was not what its owner had."""

    owner: str
    step: int
    """Completed steps in the state that both were asked for."""
    boxes: tuple[str, ...]
    """Tensors of the boxes that differed, each once."""


def needs_mirrors(layout: Layout, distributed_optimizer: bool) -> bool:
    """Return whether ranks of a world hold state that no other rank holds.

    With the distributed optimizer each replica has a share of the optimizer's state to itself; without replicas each
    rank has all of its state to itself.
    """
    return layout.size > 1 and (distributed_optimizer or layout.replicas == 1)


def keepers(hosts: Sequence[str]) -> list[int]:
    """Return the rank that keeps each rank's mirror; each rank keeps one.

    Ranks are shifted by one number, the one that puts most mirrors on another host; of equal ones the smallest.

    Args:
        hosts: host of each rank, of at least two; empty where it is not known.
    """
    size = len(hosts)
    shifts = sorted({1, size // 2, *(count for count in Counter(hosts).values() if count < size)})
    best = max(shifts, key=lambda shift: sum(hosts[rank] != hosts[rank - shift] for rank in range(size)))
    return [(rank + best) % size for rank in range(size)]


def without_holder(layout: Layout, lost: Collection[int], distributed_optimizer: bool) -> list[int]:
    """Return the lost ranks whose state no rank that is left holds: what of them is left is a mirror, if there is one.

    Args:
        layout: of the broken world.
        lost: its ranks that are gone.
    """
    if distributed_optimizer:
        return sorted(lost)
    gone = set(lost)
    rows = (set(row) for row in layout.replica_groups().tolist())
    return sorted(rank for row in rows if row <= gone for rank in row)
