"""Who is who in two worlds: members by name, and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Peers:
    """Members of both worlds, each once.

    ``names``: old members by rank, then joiners by rank. ``source``, ``target``: for each rank of either world, its
    member's number in ``names``. ``keep``: for each target rank the same worker's source rank, None for a joiner.
    """

    names: list[str]
    source: list[int]
    target: list[int]
    keep: list[int | None]

    @classmethod
    def of(cls, source: Sequence[str], target: Sequence[str]) -> Peers:
        """From the members of both worlds in rank order."""
        number = {member: place for place, member in enumerate(dict.fromkeys((*source, *target)))}
        places = [number[member] for member in target]
        keep = [place if place < len(source) else None for place in places]
        return cls(list(number), list(range(len(source))), places, keep)
