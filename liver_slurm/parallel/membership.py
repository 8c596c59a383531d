"""Members of a world: the workers in rank order, their layout, and the generation that numbers the world."""

from __future__ import annotations

from dataclasses import dataclass, field

from liver_slurm.parallel.layout import Layout


@dataclass(frozen=True)
class Membership:
    """A world as everybody agrees on it; ``members[rank]`` is the worker with that rank."""

    generation: int
    layout: Layout
    members: tuple[str, ...]
    names: frozenset[str] = field(init=False, repr=False, compare=False)
    """The members without their order, to ask for one of thousands."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset(self.members))

    def rank_of(self, worker: str) -> int | None:
        """Return the worker's rank; None if it is no member."""
        return self.members.index(worker) if worker in self.names else None


@dataclass(frozen=True)
class World(Membership):
    """A world that became live."""

    step: int
    """Completed steps when it became the live world."""
