"""Who is in a world: its members in rank order, their layout, and the generation that numbers it."""

from __future__ import annotations

from dataclasses import dataclass

from liver_slurm.parallel.layout import Layout


@dataclass(frozen=True)
class World:
    """Members in rank order."""

    generation: int
    layout: Layout
    members: tuple[str, ...]
    step: int
    """Completed steps when it became the live world."""
