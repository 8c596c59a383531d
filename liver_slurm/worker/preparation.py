"""What a worker builds a target world from: the order, what it has of the live world, and what it opens stores with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

import torch

from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.api import Engine, TrainingShard
from liver_slurm.protocol.messages import Prepare
from liver_slurm.transfer.mirror.host_room import Rooms
from liver_slurm.transfer.mirror.proof import Proofs
from liver_slurm.worker.mirroring import Mirrors

_GRACE = 10.0
"""Seconds that a worker waits for its peers beyond job.prepare_timeout. The coordinator, which gives up at that time,
knows which worker is late; a worker only knows that one is."""


class ClosableStore(Protocol):
    """A torch store that holds a connection until it is closed."""

    def close(self) -> None:
        """Give the connection back; whoever waits for a key is thrown out."""


OpenStore = Callable[[Prepare, timedelta], ClosableStore]
"""Opens the store that an order to prepare names; the second argument is how long a key is waited for."""


@dataclass(frozen=True)
class Preparation:
    """What building a target world starts from."""

    message: Prepare
    worker: str
    config: JobConfig
    engine: Engine
    live: TrainingShard | None
    """The worker's shard of the live world; None: it is in none."""
    device: torch.device
    open_store: OpenStore
    rooms: Rooms
    """Host memory of this worker's mirrors and images."""
    mirrors: Mirrors | None = None
    """Of the live world."""
    proofs: Proofs = field(default_factory=Proofs)
    """Of the mirrors that this worker keeps, in whatever world."""

    @property
    def overlap(self) -> bool:
        """Whether state moves beside training: so it is in mode overlap, unless the live world stands still."""
        return self.config.stream.mode == "overlap" and not self.message.standing

    @property
    def timeout(self) -> timedelta:
        """How long peers are waited for."""
        return timedelta(seconds=self.config.job.prepare_timeout + _GRACE)
