"""Who is who in two worlds: members by name, and their numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Peers:
    """Members of both worlds that are left, each once.

    ``names``: old members by rank, then joiners by rank. ``source``, ``target``: for each rank of either world, its
    member's number in ``names``; of a lost rank that of the member which stands in for it, or, as no
    plan uses it, of the first one. ``keep``: for each
    target rank the same worker's source rank, None for a joiner.
    """

    names: list[str]
    source: list[int]
    target: list[int]
    keep: list[int | None]

    @classmethod
    def of(
        cls,
        source: Sequence[str],
        target: Sequence[str],
        lost: Collection[str] = (),
        stand_ins: Mapping[str, str] | None = None,
    ) -> Peers:
        """Make them from the members of both worlds in rank order.

        Args:
            source, target: the members.
            lost: members of the source world that are gone.
            stand_ins: for some of those, the member that has their state.
        """
        left = [member for member in dict.fromkeys((*source, *target)) if member not in lost]
        number = {member: place for place, member in enumerate(left)}
        old_rank = {member: rank for rank, member in enumerate(source)}
        return cls(
            left,
            [number.get((stand_ins or {}).get(member, member), 0) for member in source],
            [number[member] for member in target],
            [old_rank.get(member) for member in target],
        )
