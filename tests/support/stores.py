"""torch's own store on loopback, in place of the run's, for tests that are about something else."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist

from liver_slurm.protocol.messages import Prepare


class PlainStore(dist.TCPStore):  # type: ignore[misc]
    """A store that can be closed, as the run's can."""

    def close(self) -> None:
        """Do nothing: it is closed when it is forgotten."""


def open_plain(message: Prepare, patience: timedelta) -> PlainStore:
    """The store that an order to prepare names."""
    return PlainStore(message.store_host, message.store_port, is_master=False, timeout=patience)
