"""From where a broken world's state can be had at one step, where snapshots of it were put by. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple


class Kept(NamedTuple):
    """What a rank keeps of some others."""

    owners: tuple[str, ...]
    """Workers whose snapshots are folded into one. Of one it is a copy; of several the state of any one can be had
    from it and the snapshots of all others."""
    steps: tuple[int, ...]
    """Completed steps that there is one of all of them for."""


class Survivor(NamedTuple):
    """What a survivor has said of what it holds."""

    name: str
    live: int
    """Steps completed in its live state; -1: some of that has one step more than the rest."""
    own: Collection[int]
    """Steps completed in the snapshots of its own state."""
    kept: Sequence[Kept]

    def has(self, step: int) -> bool:
        """Return whether it has its own state after ``step`` completed steps."""
        return step >= 0 and (step == self.live or step in self.own)


def newest_common(survivors: Sequence[Survivor], alone: Collection[str]) -> tuple[int, dict[str, str]] | None:
    """Return the newest step that all state can be had at, and who has that of those that are gone; None: there is
    none.

    Args:
        alone: workers that are gone, whose state no survivor's own is.
    """
    known = {step for one in survivors for step in (*one.own, *(step for kept in one.kept for step in kept.steps))}
    for step in sorted((step for step in known if step >= 0), reverse=True):
        having = {one.name for one in survivors if one.has(step)}
        if len(having) < len(survivors):
            continue
        found = {name: keeper for name in sorted(alone) if (keeper := _keeper(survivors, name, step, having))}
        if len(found) == len(alone):
            return step, found
    return None


def _keeper(survivors: Sequence[Survivor], name: str, step: int, having: Collection[str]) -> str:
    """Return the survivor that can have the state of one that is gone; empty: none can."""
    for one in survivors:
        for kept in one.kept:
            if name in kept.owners and step in kept.steps and set(kept.owners) - {name} <= set(having):
                return one.name
    return ""
