"""The layers of a target world that had no room while training went on: in the pause they move one after the other.

The old world's moments of what has arrived are freed first; then each late layer gets its storage, moves, is proven,
and frees what the old world had of it. Nothing is freed anywhere before everything so far is proven everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from liver_slurm.transfer.blocking_transfer import BlockingTransfer, BlockingTransferStats
from liver_slurm.transfer.transports.base import Transport


@dataclass(frozen=True)
class LateLayer:
    """One layer of state: how it moves, and whose memory it takes on this worker."""

    transfer: Callable[[], BlockingTransfer]
    """Makes what moves it, once it has storage."""
    allocate: Callable[[], None]
    """Give the target's part its storage."""
    free: Callable[[], None]
    """Free the old world's part."""


@dataclass(frozen=True)
class LayerwiseStats:
    """What a worker moved of late layers."""

    moved: BlockingTransferStats
    peak_bytes: int
    """Of state and staging, at most."""
    adam_step: int


class LayerwiseTransfer:
    """This worker's part of the late layers; made in PREPARE, run once in the pause, when all else is proven here."""

    def __init__(
        self,
        layers: Sequence[LateLayer],
        free_arrived: Callable[[], None],
        held: Callable[[], int],
        transport: Transport,
        met: Iterable[int],
        me: int,
        peers: int,
    ) -> None:
        """
        Args:
            layers: the same layers in the same order on every worker, however little of them is here.
            free_arrived: frees the old world's moments of the layers that are not late.
            held: bytes of state that this worker holds now.
            transport: that of the layers, on which nothing else is sent meanwhile.
            met: workers that late state comes from or goes to.
            me, peers: this worker's number there, of how many.
        """
        self._layers, self._free_arrived, self._held = layers, free_arrived, held
        self._transport, self._me, self._peers = transport, me, peers
        self.freed = False
        """The old world's state is no longer whole, here or elsewhere: there is no way back."""
        beside = {(me + sign * distance) % peers for distance in _distances(peers) for sign in (1, -1)}
        transport.connect(sorted((beside | set(met)) - {me}))

    def __len__(self) -> int:
        return len(self._layers)

    def run(self, counters: Sequence[int] | None) -> LayerwiseStats:
        """Move every late layer.

        Args:
            counters: as for :meth:`liver_slurm.transfer.blocking_transfer.Transfer.run`.

        Raises:
            TransferError: a peer is gone, the transfer was given up, or a digest differs. Where :attr:`freed` says so,
                the old world is lost.
        """
        meet(self._transport, self._me, self._peers)
        self.freed = True
        self._free_arrived()
        peak, total, adam_step = 0, BlockingTransferStats(), 0
        for layer in self._layers:
            layer.allocate()
            held = self._held()
            stats, (adam_step, *_) = layer.transfer().run(counters)
            peak = max(peak, held + stats.staging_peak_bytes)
            total = total + stats
            meet(self._transport, self._me, self._peers)
            layer.free()
        return LayerwiseStats(total, peak, adam_step)


def meet(transport: Transport, me: int, peers: int) -> None:
    """Return when every peer has come here: in each round one hears from another twice as far away.

    The dissemination barrier of Hensgen, Finkel & Manber (1988). What every peer has proven before it comes, is proven
    everywhere when it returns.

    Raises:
        TransferError: a peer is gone, or the transfer was given up.
    """
    token = torch.zeros(2, dtype=torch.uint8, device=transport.device)
    for distance in _distances(peers):
        to, origin = (me + distance) % peers, (me - distance) % peers
        if me // distance % 2 == 0:  # in each circle somebody receives first: a send may wait for its receiver
            transport.send(to, token[:1]).wait()
            transport.receive(origin, token[1:]).wait()
        else:
            transport.receive(origin, token[1:]).wait()
            transport.send(to, token[:1]).wait()


def _distances(peers: int) -> list[int]:
    return [1 << round_ for round_ in range((peers - 1).bit_length())]
