"""How one worker's state reaches its peers in one reconfiguration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from liver_slurm.transfer.transports.base import Transport


def _ignore(_box: torch.Tensor) -> None:
    """Do nothing with a box that has arrived."""


@dataclass(frozen=True)
class Route:
    """The transport, what it calls the ranks of both worlds, and the memory that messages may take."""

    transport: Transport
    me: int
    """This worker's own number in the transport."""
    source_peers: Sequence[int]
    """The transport's number of each rank of the source world."""
    target_peers: Sequence[int]
    """The transport's number of each rank of the target world."""
    staging_bytes: int
    """Memory for messages, in all."""
    on_received: Callable[[torch.Tensor], None] = _ignore
    """Called with each box that has arrived in its place, before its digest is compared."""
    gradient_room: int | None = None
    """Memory for staged gradients besides; None: no limit."""
