"""Giving guaranteed nodes back to Slurm: which workers go for it, and which nodes are free then. Pure.

A component of the live job loses its last nodes (``scontrol update NumNodes``), where this Slurm can; without
accounting it can do so once. Then it can only be ended as a whole. Component 0, the coordinator's, always stays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from liver_slurm.config.schema import LiveSection


@dataclass(frozen=True)
class Component:
    """One worker component of the live job, as far as it is still there."""

    number: int
    """From 1."""
    nodes: tuple[range, ...]
    """Numbers of each node's workers, in the order in which Slurm holds the nodes."""
    shrinkable: bool = True
    """Slurm can take single nodes of it."""

    def left(self, needed: Collection[int]) -> int:
        """Nodes that it keeps if of all workers only these are needed."""
        taken = [at for at, node in enumerate(self.nodes) if any(worker in needed for worker in node)]
        if not taken:
            return 0
        return taken[-1] + 1 if self.shrinkable else len(self.nodes)


def components(live: LiveSection, kept: Mapping[int, int], fixed: Collection[int]) -> list[Component]:
    """The components of a live job, with their workers as ``srun`` numbers them: node by node, through all components.

    Args:
        live: of the job file.
        kept: nodes that components have left, those that have given some back.
        fixed: components that Slurm takes no single node of.
    """
    found, first = [], 0
    for number, section in enumerate(live.component, start=1):
        each, end = section.tasks_per_node, first + section.nodes * section.tasks_per_node
        nodes = tuple(range(start, start + each) for start in range(first, end, each))
        first, left = end, kept.get(number, section.nodes)
        if left:
            found.append(Component(number, nodes[:left], number not in fixed))
    return found


def leavers(parts: Sequence[Component], there: Collection[int], count: int) -> tuple[tuple[int, ...], int, str]:
    """Which of the workers ``there`` go, ``count`` at most (0 or less: none), so that nodes become free.

    First whole components that Slurm takes in no other way, then node by node, from the last one on.

    Returns:
        the workers; how many nodes that frees; and why ``count`` workers free no more, or "" if each frees its node.
    """
    chosen: list[int] = []
    freed = 0

    def take(nodes: Sequence[range]) -> bool:
        nonlocal freed
        going = [worker for node in reversed(nodes) for worker in reversed(node) if worker in there]
        fits = len(going) <= count - len(chosen)
        if fits:
            freed += len(nodes)
            chosen.extend(going)
        return fits

    rigid = [part.number for part in reversed(parts) if not part.shrinkable and not take(part.nodes)]
    for part in reversed(parts):
        left = len(part.nodes) if part.shrinkable else 0
        while left and take(part.nodes[left - 1 : left]):
            left -= 1
    rest = count - len(chosen)
    if rest <= 0:
        return tuple(chosen), freed, ""
    whole = f", and component {', '.join(map(str, sorted(rigid)))} only whole" if rigid else ""
    why = f"{rest} worker{'s' if rest > 1 else ''} more will be in no world: a node goes back with all of its workers"
    return tuple(chosen), freed, why + whole


def largest(parts: Sequence[Component], there: Collection[int]) -> int:
    """Workers of the largest world of those ``there`` that leaves a node free; 0: there is none."""
    costs = [
        sum(worker in there for node in (part.nodes[-1:] if part.shrinkable else part.nodes) for worker in node)
        for part in parts
    ]
    return max(0, len(there) - min(costs, default=len(there)))
