"""The world of a baseline that restarts: process groups as the product has them, and nobody who coordinates."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from liver_slurm.parallel.groups import ProcessGroups


def join_world(layout: str, generation: int, rank: int, port: int, device: torch.device) -> ProcessGroups:
    """Build this rank's process groups of a world whose store is at ``port`` of this machine."""
    import torch.distributed as dist

    from liver_slurm.parallel.groups import build_world
    from liver_slurm.parallel.layout import Layout
    from liver_slurm.parallel.membership import Membership

    timeout = timedelta(minutes=5)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout)
    parsed = Layout.parse(layout)
    membership = Membership(generation, parsed, tuple(map(str, range(parsed.size))))
    return build_world(membership, str(rank), store, "nccl" if device.type == "cuda" else "gloo", device, timeout)
