"""One worker's part of moving state: what it reads from its peers, what they read here, what stays, and the proof.

Made in PREPARE, for both modes. In mode overlap :meth:`Transfer.attach` has updates watched, and from
:meth:`Transfer.open` on state is read beside training. At the cutover :meth:`Transfer.finish` brings every box to the
last version, in mode pause all of it; :meth:`Transfer.prove` then waits for the digests, in mode overlap while the new
world runs its first forward and backward pass. Until the commit nothing of the old world's state is written.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from liver_slurm.base.errors import TransferError
from liver_slurm.engine.replica import Updates
from liver_slurm.transfer.crew import Crew
from liver_slurm.transfer.local_copies import LocalCopies
from liver_slurm.transfer.one_sided.pull import Pull


@dataclass(frozen=True)
class TransferStats:
    """What a worker moved."""

    seconds: float = 0.0
    """From when training stood until every box was current."""
    bytes_sent: int = 0
    """State that peers read here, and gradients that were read from peers."""
    bytes_early: int = 0
    """State that arrived while training ran."""
    bytes_gradients: int = 0
    bytes_received: int = 0
    bytes_local: int = 0
    staging_peak_bytes: int = 0
    gradient_staging_bytes: int = 0
    digests_checked: int = 0
    exposed_seconds: float = 0.0
    """How long training was held up in the optimizer's hooks."""

    def __add__(self, other: TransferStats) -> TransferStats:
        """Sum both, one after the other."""
        return TransferStats(
            self.seconds + other.seconds,
            self.bytes_sent + other.bytes_sent,
            self.bytes_early + other.bytes_early,
            self.bytes_gradients + other.bytes_gradients,
            self.bytes_received + other.bytes_received,
            self.bytes_local + other.bytes_local,
            max(self.staging_peak_bytes, other.staging_peak_bytes),
            max(self.gradient_staging_bytes, other.gradient_staging_bytes),
            self.digests_checked + other.digests_checked,
            self.exposed_seconds + other.exposed_seconds,
        )


class Transfer:
    """One worker's transfer. Training's thread calls it, but for :meth:`start`, :meth:`open`, :meth:`abort` and
    :meth:`prove`."""

    def __init__(self, pull: Pull, copies: LocalCopies, updates: Updates | None, beside_training: bool) -> None:
        """
        Args:
            pull: what is read, here and from peers.
            copies: what stays on this worker.
            updates: of the source world; None for a joiner.
            beside_training: mode overlap.
        """
        self._pull, self._copies, self._updates = pull, copies, updates
        self._crew = Crew(pull.cancel)
        pull.notify(self._crew.notify)
        self._seconds = 0.0
        self.beside_training = beside_training
        self.state_bytes = pull.state_bytes
        """Of state that comes from other workers."""

    def probe(self) -> float:
        """Measure how fast state will come in, once all workers are prepared.

        Returns:
            bytes a second; 0.0: none comes.

        Raises:
            TransferError: a peer is gone.
        """
        return self._pull.probe()

    def start(self) -> None:
        """Start the threads, unless they run; what owners say is followed from now on."""
        self._crew.start(self._pull.bodies)

    def attach(self) -> None:
        """Watch the updates of the source world from now on; call between two steps."""
        self._pull.attach()

    def open(self, last: bool) -> None:
        """Let state be read while training runs, once updates are watched.

        Args:
            last: the step that training is in, or begins, is the last one before the cutover.
        """
        self._pull.open(last)

    def detach(self) -> None:
        """Leave training's thread alone, as the transfer is given up."""
        self._pull.detach()

    def finish(self) -> int:
        """Bring every box to the state that the source world has now, between two steps.

        Returns:
            how many updates its optimizer has made; -1: this worker trained nothing there, and nothing comes to it.

        Raises:
            TransferError: a peer is gone, the transfer was given up, or workers count updates differently.
        """
        begun = time.perf_counter()
        self._crew.awaited()
        self.start()
        made = self._updates.adam_step() if self._updates is not None else -1
        self._pull.finish(made)
        self._copies.copy()
        self._crew.wait(lambda: self._pull.ended)
        # A joiner has waited until now for the live world to get to the cutover.
        self._seconds = time.perf_counter() - (begun if self._updates is not None else max(begun, self._pull.begun))
        read = self._pull.adam_step
        if made >= 0 and read >= 0 and made != read:
            raise TransferError(f"this worker's optimizer has made {made} updates, and those that it reads from {read}")
        return max(made, read)

    def prove(self) -> TransferStats:
        """Wait until every digest, here and of what was read here, is compared or on its way.

        Raises:
            TransferError: one differs, a peer is gone, or the transfer was given up.
        """
        self._copies.prove()
        self._crew.wait(lambda: self._crew.idle)
        pulled = self._pull.stats
        return TransferStats(
            seconds=self._seconds,
            bytes_sent=pulled.bytes_sent + pulled.bytes_gradients,
            bytes_early=pulled.bytes_early,
            bytes_gradients=pulled.bytes_gradients,
            bytes_received=pulled.bytes_received,
            bytes_local=self._copies.nbytes,
            staging_peak_bytes=pulled.staging_peak_bytes,
            gradient_staging_bytes=pulled.gradient_bytes,
            digests_checked=pulled.digests_checked + self._copies.digests_checked,
            exposed_seconds=pulled.exposed_seconds,
        )

    def release(self) -> None:
        """Give the memory of copied gradients back, as all is proven; connections stay."""
        self._pull.release()

    def stop_reading(self) -> None:
        """Close the peers' memory, which they could not free else, as all is proven here; peers go on
        reading here."""
        self._pull.stop_reading()

    def abort(self) -> None:
        """Throw everything that runs or waits out with an error, here and at the peers; from any thread."""
        self._crew.fail(TransferError("the transfer was given up"))
        self._pull.cancel()

    def close(self) -> None:
        """Give the connections back; nothing may run any more but what :meth:`abort` ends."""
        self.abort()
        self._crew.join()
        self._pull.close()
