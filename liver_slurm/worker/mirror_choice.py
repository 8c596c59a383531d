"""Mirror choice: before a world's mirrors are opened, all its members agree on how they are kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from liver_slurm.base.host_memory import available_memory
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.replica import Replica
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.mirrors import needs_mirrors
from liver_slurm.reshard.parity import Choice, Means, choose
from liver_slurm.transfer.connections import machine

log = logging.getLogger(__name__)


def wanted(config: JobConfig, layout: Layout, device: torch.device) -> bool:
    """Return whether a world of a layout has mirrors, if there is room."""
    on = config.recovery.mirrors(on_cards=device.type != "cpu")
    return on and needs_mirrors(layout, config.train.distributed_optimizer)


def agree(
    store: Any,
    rank: int,
    hosts: Sequence[str],
    replica: Replica,
    config: JobConfig,
    device: torch.device,
    freed: int = 0,
) -> Choice:
    """Choose for a world that is to have mirrors; all members must call it, and get the same.

    Args:
        store: a torch store of the world's own scope.
        hosts: of the world's ranks.
        replica: this rank's state.
        freed: bytes that the mirrors of the world before take here, which are given back.
    """
    on_cards, group = device.type != "cpu", config.recovery.mirror_group
    every, replayed = config.recovery.mirror_every, config.train.replayed
    if group:
        return choose((), hosts, every, group, on_cards, replayed)
    store.set(f"means/{rank}", msgspec.msgpack.encode(_means(replica, freed)))
    if rank == 0:
        means = [msgspec.msgpack.decode(store.get(f"means/{each}"), type=Means) for each in range(len(hosts))]
        choice = choose(means, hosts, every, 0, on_cards, replayed)
        log.log(
            logging.WARNING if choice.kind == "none" else logging.INFO, "mirrors: %s: %s", choice.told, choice.reason
        )
        store.set("choice", msgspec.msgpack.encode(choice))
    return msgspec.msgpack.decode(store.get("choice"), type=Choice)


def _means(replica: Replica, freed: int) -> Means:
    trained = sum(view.nbytes for box in replica.trained for view in box.state)
    return Means(machine(), available_memory() + freed, trained + sum(view.nbytes for _, view in replica.fixed))
