"""Process groups of a world, created beside whatever other worlds the process is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from liver_slurm.parallel import c10d
from liver_slurm.parallel.layout import Coordinates, Layout
from liver_slurm.parallel.membership import Membership


@dataclass
class ProcessGroups:
    """This process's rank in a world, and its groups; :func:`build_world` creates them."""

    membership: Membership
    rank: int
    backend: str
    """``gloo`` or ``nccl``."""
    groups: dict[str, Any]
    """``world``, ``tp``, ``dp``, ``pp``, ``mp`` (tensor × pipeline), ``embd`` (first and last pipeline stage; only
    there), ``pos_embd`` (first stage only), ``self`` (this rank alone), and ``host``: all ranks over gloo, for what
    runs beside a training world: NCCL's kernels of two worlds on one GPU may wait for each other for ever."""

    @property
    def layout(self) -> Layout:
        """Layout of the world."""
        return self.membership.layout

    @property
    def place(self) -> Coordinates:
        """Coordinates of this rank."""
        return self.layout.coordinates(self.rank)

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
    """
    rank = membership.rank_of(worker)
    if rank is None:
        raise ValueError(f"{worker} is no member of generation {membership.generation}")
    layout = membership.layout

    made: dict[tuple[int, ...], Any] = {}

    def make(kind: str, ranks: list[int]) -> Any:
        # Axes of size one make many groups the same; each group costs sockets and threads, or an NCCL communicator.
        if tuple(ranks) not in made:
            name = f"generation{membership.generation}/{kind}/{ranks[0]}-{ranks[-1]}"
            made[tuple(ranks)] = c10d.make_group(store, name, ranks, rank, backend, timeout, device)
        return made[tuple(ranks)]

    everybody, stages = layout.group(rank, "tp", "pp", "dp"), layout.group(rank, "pp")
    groups = {
        "world": make("world", everybody),
        "tp": make("tp", layout.group(rank, "tp")),
        "dp": make("dp", layout.group(rank, "dp")),
        "pp": make("pp", stages),
        "mp": make("mp", layout.group(rank, "tp", "pp")),
        "self": make("self", layout.group(rank)),
    }
    name = f"generation{membership.generation}/host"
    groups["host"] = c10d.make_group(store, name, everybody, rank, "gloo", timeout, torch.device("cpu"))
    if rank in (stages[0], stages[-1]):
        groups["embd"] = make("embd", sorted({stages[0], stages[-1]}))
    if rank == stages[0]:
        groups["pos_embd"] = make("pos_embd", [rank])
    if backend == "nccl" and layout.pp > 1:
        c10d.connect_in_line(groups["pp"], device)
    return ProcessGroups(membership, rank, backend, groups)
