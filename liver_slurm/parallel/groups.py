"""Process groups of a world, created beside whatever other worlds the process is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from liver_slurm.parallel import c10d
from liver_slurm.parallel.layout import GROUPS, Coordinates, Layout
from liver_slurm.parallel.membership import Membership


@dataclass
class ProcessGroups:
    """This process's rank in a world, and its groups; :func:`build_world` creates them."""

    membership: Membership
    rank: int
    backend: str
    """``gloo`` or ``nccl``."""
    groups: dict[str, Any]
    """Those of :data:`~liver_slurm.parallel.layout.GROUPS`, ``embd`` (first and last pipeline stage; only there),
    ``pos_embd`` (first stage only), and ``host``: all ranks over gloo, for what runs beside a training world: NCCL's
    kernels of two worlds on one GPU may wait for each other for ever."""

    @property
    def layout(self) -> Layout:
        """Layout of the world."""
        return self.membership.layout

    @property
    def place(self) -> Coordinates:
        """Coordinates of this rank."""
        return self.layout.coordinates(self.rank)

    @property
    def replica(self) -> int:
        """Number of this rank among those that hold the same parameters, but for experts."""
        return self.layout.dense_replica(self.rank)

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has the output layer, and so the loss."""
        return self.place.pp == self.layout.pp - 1

    @contextmanager
    def scope(self) -> Iterator[ProcessGroups]:
        """Make the ``host`` group the default one for torch calls of this thread inside the block."""
        with c10d.default_group(self.groups["host"]):
            yield self

    def destroy(self) -> None:
        """Destroy all groups; the world must not be the live one."""
        for group in {id(group): group for group in self.groups.values()}.values():
            c10d.destroy_group(group)
        self.groups = {}

    def abort(self) -> None:
        """End every wait in a collective of this world with an error, here and at the peers."""
        for kind, group in {id(group): (kind, group) for kind, group in self.groups.items()}.values():
            c10d.abort_group(group, "gloo" if kind == "host" else self.backend)


def build_world(
    membership: Membership, worker: str, store: Any, backend: str, device: torch.device, timeout: timedelta
) -> ProcessGroups:
    """Create this worker's groups of a world; every member must call it, and it blocks until they all do.

    Raises:
        ValueError: the worker is no member.
        RuntimeError: a peer did not come in time, or the store was closed; nothing is left of the groups made so far.
    """
    rank = membership.rank_of(worker)
    if rank is None:
        raise ValueError(f"{worker} is no member of generation {membership.generation}")
    groups: dict[str, Any] = {}
    world = ProcessGroups(membership, rank, backend, groups)
    try:
        _make_groups(world, store, timeout, device)
    except BaseException:
        world.destroy()
        raise
    return world


def _make_groups(world: ProcessGroups, store: Any, timeout: timedelta, device: torch.device) -> None:
    """Make the groups of a world that has none yet, each as soon as it is made."""
    layout, rank, backend, groups = world.layout, world.rank, world.backend, world.groups
    generation = world.membership.generation
    made: dict[tuple[int, ...], Any] = {}

    def make(kind: str, ranks: list[int]) -> None:
        # Axes of size one make many groups the same; each group costs sockets and threads, or an NCCL communicator.
        if tuple(ranks) not in made:
            name = f"generation{generation}/{kind}/{ranks[0]}-{ranks[-1]}"
            made[tuple(ranks)] = c10d.make_group(store, name, ranks, rank, backend, timeout, device)
        groups[kind] = made[tuple(ranks)]

    for kind, axes in GROUPS.items():
        make(kind, layout.group(rank, *axes))
    everybody, stages = list(range(layout.size)), layout.group(rank, "pp")
    name = f"generation{generation}/host"
    groups["host"] = c10d.make_group(store, name, everybody, rank, "gloo", timeout, torch.device("cpu"))
    if rank in (stages[0], stages[-1]):
        make("embd", sorted({stages[0], stages[-1]}))
    if rank == stages[0]:
        make("pos_embd", [rank])
    if backend == "nccl" and layout.pp > 1:
        c10d.connect_in_line(groups["pp"], stages, device)
    if backend == "nccl" and layout.vpp > 1:
        # The last stage sends to the first one, too: where these two are all, over the default group.
        back = groups["pp"] if layout.pp > 2 else groups["world"]
        c10d.connect_in_line(back, [stages[-1], stages[0]], device)
