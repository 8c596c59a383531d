"""The section of a job file on what is kept for the sudden death of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from liver_slurm.config.types import Natural


@dataclass(frozen=True)
class RecoverySection:
    """What is kept for the sudden death of a worker."""

    mirror: Literal["auto", "on", "off"] = "auto"
    """Keep what no other worker holds, such as shares of the distributed optimizer's state, in a peer's host memory,
    current to the last update: 16 bytes for each of its parameters. ``auto``: on CPUs only."""
    mirror_every: Natural = 0
    """Steps between two refreshes of what is kept; 0: it is current to the last update, for which each step's gradients
    are sent. With N a death costs at most N steps, which all train again, and less is sent where N is above three; each
    worker keeps a copy of its own state of that step besides: 36 bytes in all for each parameter of its share."""
    mirror_group: Natural = 0
    """Owners of one mirror. 1: each worker's state is kept as a copy. With k above that, parity of the states of k
    workers on different nodes is kept by one more; from it and all others' states that of any one can be had. It is
    refreshed every ``mirror_every`` steps, or every 50 if that is 0, and takes 12 + 24 / k bytes for each parameter. 0:
    copies, or where half of the host memory that is left has no room for them, parity of 2, 4, 8, …, the first that it
    has room for."""

    def mirrors(self, on_cpus: bool) -> bool:
        """Whether what no other worker holds is kept, of a run whose workers train on CPUs, or on cards."""
        return self.mirror == "on" or (self.mirror == "auto" and on_cpus)
