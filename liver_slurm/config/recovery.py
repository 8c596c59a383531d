"""The section of a job file on what is kept for the sudden death of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from liver_slurm.config.types import Natural


@dataclass(frozen=True)
class RecoverySection:
    """What is kept for the sudden death of a worker."""

    mirror: Literal["auto", "on", "off"] = "auto"
    """Keep what no other worker holds, such as shares of the distributed optimizer's state, in a peer's host memory: on
    CPUs current to the last update, 20 bytes for each of its parameters, and on cards, or with ``train.optimizer``
    muon, refreshed every some steps, see ``mirror_every``. ``auto``: on CPUs only."""
    mirror_every: Natural = 0
    """Steps between two refreshes of what is kept; 0, on CPUs: it is current to the last update, for which each step's
    gradients are sent while training waits. With N it is sent during training, and a death costs at most N steps and
    those made while it was sent, which all train again; each worker keeps copies of its own state besides: 48 bytes in
    all for each parameter of its share. 0, on cards, or with muon: 50, as gradients of each step would be more than is
    sent between hosts while a step takes tenths of a second, or do not suffice; but where all cards are in one host,
    whose workers share its memory, 1, and 24 bytes. On cards no step waits for it: what has not arrived yet puts the
    next refresh off."""
    mirror_group: Natural = 0
    """Owners of one mirror. 1: each worker's state is kept as a copy. With k above that, parity of the states of k
    workers on different nodes is kept by one more; from it and all others' states that of any one can be had. It is
    refreshed every ``mirror_every`` steps, or every 50 if that is 0, and takes 12 + 24 / k bytes for each parameter, on
    cards, where training does not wait for it, 24 + 24 / k. 0: copies, or where half of the host memory that is left
    has no room for them, parity of 2, 4, 8, …, the first that it has room for."""

    def mirrors(self, on_cards: bool) -> bool:
        """Return whether what no other worker holds is kept, of a run whose workers train on cards, or on CPUs."""
        return self.mirror == "on" or (self.mirror == "auto" and not on_cards)
