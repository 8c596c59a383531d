"""The layers of a target world that had no room while training went on: in the pause they move one after the other.

The old world's moments of what has arrived are freed first; then each late layer gets its storage, is read, is proven,
and frees what the old world had of it. Nothing is freed anywhere before everything so far is proven everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from liver_slurm.transfer.barrier import Barrier
from liver_slurm.transfer.transfer import Transfer, TransferStats


@dataclass(frozen=True)
class LateLayer:
    """One layer of state: how it moves, and whose memory it takes on this worker."""

    transfer: Callable[[], Transfer]
    """Makes what moves it, once it has storage."""
    allocate: Callable[[], None]
    """Give the target's part its storage."""
    free: Callable[[], None]
    """Free the old world's part."""


@dataclass(frozen=True)
class LayerwiseStats:
    """What a worker moved of late layers."""

    moved: TransferStats
    peak_bytes: int
    """Of state and staging, at most."""
    adam_step: int
    """How many updates the source world has made; -1: nobody has said so here."""


class LayerwiseTransfer:
    """This worker's part of the late layers; made in PREPARE, run once in the pause, when all else is proven here."""

    def __init__(
        self,
        layers: Sequence[LateLayer],
        free_arrived: Callable[[], None],
        held: Callable[[], int],
        barrier: Barrier,
    ) -> None:
        """
        Args:
            layers: the same layers in the same order on every worker, however little of them is here.
            free_arrived: frees the old world's moments of the layers that are not late.
            held: bytes of state that this worker holds now.
            barrier: of all workers.
        """
        self._layers, self._free_arrived, self._held, self._barrier = layers, free_arrived, held, barrier
        self.freed = False
        """The old world's state is no longer whole, here or elsewhere: there is no way back."""

    def __len__(self) -> int:
        return len(self._layers)

    def run(self) -> LayerwiseStats:
        """Move every late layer.

        Raises:
            TransferError: a peer is gone, the transfer was given up, or a digest differs. Where :attr:`freed` says so,
                the old world is lost.
        """
        self._barrier.wait()
        self.freed = True
        self._free_arrived()
        peak, total, adam_step = 0, TransferStats(), -1
        for layer in self._layers:
            layer.allocate()
            held = self._held()
            transfer = layer.transfer()
            adam_step = max(adam_step, transfer.finish())
            stats = transfer.prove()
            peak = max(peak, held + stats.staging_peak_bytes)
            total = total + stats
            self._barrier.wait()
            layer.free()
        return LayerwiseStats(total, peak, adam_step)
