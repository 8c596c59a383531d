"""One worker's part of a one-sided transfer: what it reads from its peers, and what they read from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from liver_slurm.transfer.one_sided.owner import Owner
from liver_slurm.transfer.one_sided.puller import Puller
from liver_slurm.transfer.one_sided.staging import Staging
from liver_slurm.transfer.transports.base import Transport


@dataclass(frozen=True)
class PullStats:
    """What was read."""

    bytes_sent: int = 0
    """What peers read here."""
    bytes_received: int = 0
    bytes_early: int = 0
    """Of what was read from peers: while training ran."""
    bytes_gradients: int = 0
    digests_checked: int = 0
    staging_peak_bytes: int = 0
    """Of gradients that were copied here before they were used, at most at a time."""


class Pull:
    """Made in PREPARE; its methods are called as those of the transfer that it is a part of."""

    def __init__(
        self,
        owner: Owner | None,
        pullers: Sequence[Puller],
        transport: Transport,
        pool: Executor | None,
        staging: Staging,
    ) -> None:
        """
        Args:
            owner: says what peers may read; None: they read nothing here.
            transport: of the few words between them; closed with this.
            pool: the threads that both use; ended with this.
            staging: that of the pullers.
        """
        self._owner, self._pullers, self._transport, self._pool = owner, pullers, transport, pool
        self._staging = staging
        self.state_bytes = sum(puller.bytes_received for puller in pullers)

    @property
    def bodies(self) -> list[Callable[[], None]]:
        """What its threads do."""
        return [puller.run for puller in self._pullers] + ([self._owner.run] if self._owner is not None else [])

    def notify(self, on_ended: Callable[[], None]) -> None:
        """Have this called, in a thread, when all that one peer has is here."""
        for puller in self._pullers:
            puller.on_ended = on_ended

    def probe(self) -> float:
        """Bytes a second at which a little of the state can be read now; 0.0: there is nothing to read."""
        begun = time.perf_counter()
        read = sum(puller.read_some() for puller in self._pullers)
        return read / (time.perf_counter() - begun) if read else 0.0

    def attach(self) -> None:
        """Count the updates of the source world from now on; call between two steps."""
        if self._owner is not None:
            self._owner.attach()

    def open(self) -> None:
        """The last step before the cutover has begun: peers may read what stands still until its update."""
        if self._owner is not None:
            self._owner.open()

    def detach(self) -> None:
        """It is given up: training has nothing to do with it any more."""
        if self._owner is not None:
            self._owner.detach()

    def finish(self, adam_step: int) -> None:
        """Training stands, after ``adam_step`` updates: peers may read all of it."""
        if self._owner is not None:
            self._owner.finish(adam_step)

    @property
    def ended(self) -> bool:
        """All that is read here is as its owners have it."""
        return all(puller.ended for puller in self._pullers)

    @property
    def adam_step(self) -> int:
        """How many updates the source world has made, as the owners said; 0: nothing was read."""
        return max((puller.adam_step for puller in self._pullers), default=0)

    @property
    def stats(self) -> PullStats:
        """What was read so far."""

        def total(name: str) -> int:
            return sum(getattr(puller, name) for puller in self._pullers)

        return PullStats(
            bytes_sent=self._owner.bytes_sent if self._owner is not None else 0,
            bytes_received=total("bytes_received"),
            bytes_early=total("bytes_early"),
            bytes_gradients=total("bytes_gradients"),
            digests_checked=total("digests_checked"),
            staging_peak_bytes=self._staging.peak_bytes,
        )

    def cancel(self) -> None:
        """Throw out whoever waits, here and at the peers; from any thread."""
        if self._owner is not None:
            self._owner.cancel()
        for puller in self._pullers:
            puller.cancel()
        self._transport.abort()

    def close(self) -> None:
        """Give everything back; no thread may run any more."""
        if self._pool is not None:
            self._pool.shutdown()
        for puller in self._pullers:
            puller.close()
        self._transport.close()
