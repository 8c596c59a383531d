"""How many units would start at once on the nodes as they are: pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from liver_slurm.config.schema import ComponentSection, StandbySection
from liver_slurm.scheduler.slurm.records import NodeInfo

STARTABLE = frozenset({"idle", "mixed"})
"""Any other state takes no new job, or a pending one is about to have the node (``mixed+planned``)."""


@dataclass(frozen=True)
class Unit:
    """What one job of a kind asks for; the amounts are those on each of its nodes."""

    nodes: int
    cpus: int
    gpus: int = 0
    memory: int = 0
    """Mebibytes; 0: whatever the cluster gives."""
    constraint: str | None = None
    exclude: frozenset[str] = frozenset()


def make_unit(
    wanted: ComponentSection | StandbySection, nodes: int, memory: int, expand: Callable[[str], tuple[str, ...]]
) -> Unit:
    """Return what one job of a kind asks for, on each of its ``nodes``; ``memory`` in mebibytes."""
    return Unit(
        nodes=nodes,
        cpus=wanted.tasks_per_node * wanted.cpus_per_task,
        gpus=wanted.tasks_per_node * wanted.gpus_per_task,
        memory=memory,
        constraint=wanted.constraint,
        exclude=frozenset(expand(wanted.exclude)) if wanted.exclude else frozenset(),
    )


def idle_units(nodes: Iterable[NodeInfo], unit: Unit) -> int:
    """Units that fit into what is idle, each on ``unit.nodes`` different nodes."""
    return pack([_slots(node, unit) for node in nodes], unit.nodes)


def fitting_nodes(nodes: Iterable[NodeInfo], unit: Unit) -> list[NodeInfo]:
    """Return the nodes that could take their part of a unit if nothing else ran on them."""
    return [
        node
        for node in nodes
        if node.name not in unit.exclude
        and (node.has_more or satisfies(node.features, unit.constraint))
        and node.cpus >= unit.cpus
        and node.gpus >= unit.gpus
        and node.memory >= unit.memory
    ]


def pack(slots: Sequence[int], width: int) -> int:
    """Return the most units that can be placed when each takes one slot on each of ``width`` different nodes.

    ``units`` can be placed exactly when the slots, at most ``units`` of them counted for each node, suffice.
    """
    units = sum(slots) // width
    while units and sum(min(slot, units) for slot in slots) < units * width:
        units -= 1
    return units


def satisfies(features: frozenset[str], constraint: str | None) -> bool:
    """Return whether a node with ``features`` meets Slurm's ``--constraint``.

    Names joined by ``&``, ``,`` and ``|`` are evaluated; in what else Slurm allows (counts, matching OR, negation), a
    node with any of the named features counts, and Slurm has the last word.
    """
    if not constraint:
        return True
    if re.fullmatch(r"[\w.\-]+(?:[&,|][\w.\-]+)*", constraint):
        return any(
            all(name in features for name in re.split("[&,]", alternative)) for alternative in constraint.split("|")
        )
    return any(name in features for name in re.findall(r"[A-Za-z_][\w.\-]*", constraint))


def _slots(node: NodeInfo, unit: Unit) -> int:
    if node.state not in STARTABLE or not fitting_nodes([node], unit):
        return 0
    slots = node.cpus_idle // unit.cpus
    if unit.gpus:
        slots = min(slots, node.gpus_idle // unit.gpus)
    if unit.memory:
        slots = min(slots, node.memory_idle // unit.memory)
    return slots
