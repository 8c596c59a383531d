"""One worker's part of a one-sided transfer: what it reads from its peers, and what they read from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from liver_slurm.base.errors import TransferError
from liver_slurm.transfer.connections import Connections
from liver_slurm.transfer.one_sided.owner import Owner
from liver_slurm.transfer.one_sided.puller import Puller
from liver_slurm.transfer.one_sided.registered_memory import Agent
from liver_slurm.transfer.one_sided.staging import Staging


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
    """Of what was staged here on its way, at most at a time."""
    gradient_bytes: int = 0
    """Of copies of gradients that are kept here."""
    exposed_seconds: float = 0.0
    """How long training was held up in the optimizer's hooks."""


class Pull:
    """Made in PREPARE; its methods are called as those of the transfer that it is a part of."""

    def __init__(
        self,
        owner: Owner | None,
        pullers: Sequence[Puller],
        connections: Sequence[Connections],
        pool: Executor | None,
        staging: Staging,
        late: Callable[[int], Sequence[Puller]],
        agent: Agent | None = None,
        group: int = 0,
    ) -> None:
        """
        Args:
            owner: says what peers may read; None: they read nothing here.
            connections: those of the lines between them, and all others of the transfer; closed with this.
            agent: what reads registered memory, if anything does; closed with this.
            pool: the threads that both use; ended with this.
            staging: that of all of them.
            late: makes what reads a late layer, by the number of its group.
            group: of what is read together.
        """
        self._owner, self._pullers, self._connections, self._pool = owner, pullers, connections, pool
        self._staging, self._late, self._agent, self._group = staging, late, agent, group
        self.state_bytes = sum(puller.bytes_received for puller in pullers)

    @property
    def bodies(self) -> list[Callable[[], None]]:
        """What its threads do."""
        answered = [partial(self._owner.run, self._group)] if self._owner is not None else []
        return [*[puller.run for puller in self._pullers], *answered]

    def late(self, layer: int) -> Pull:
        """Return what moves a late layer, counted from 0, once its storage is there: not to be closed, as this is."""
        group = 1 + layer
        return Pull(
            self._owner, self._late(group), self._connections, self._pool, self._staging, self._late, None, group
        )

    def notify(self, on_ended: Callable[[], None]) -> None:
        """Have this called, in a thread, when all that one peer has is here."""
        for puller in self._pullers:
            puller.on_ended = on_ended

    def probe(self) -> float:
        """Return the bytes a second at which a little of the state can be read now; 0.0: there is nothing to read."""
        begun = time.perf_counter()
        read = sum(puller.read_some() for puller in self._pullers)
        return read / (time.perf_counter() - begun) if read else 0.0

    def attach(self) -> None:
        """Count the updates of the source world from now on; call between two steps."""
        if self._owner is not None:
            self._owner.attach()

    def open(self, last: bool) -> None:
        """Let peers read what stands still until the next update; see :meth:`Owner.open`."""
        if self._owner is not None:
            self._owner.open(last)

    def detach(self) -> None:
        """Leave training alone, as the transfer is given up."""
        if self._owner is not None:
            self._owner.detach()

    def finish(self, adam_step: int) -> None:
        """Let peers read all, as training stands; after ``adam_step`` updates, -1 if it is not known here."""
        if self._owner is not None:
            self._owner.finish(adam_step, self._group)

    @property
    def ended(self) -> bool:
        """All that is read here is as its owners have it."""
        return all(puller.ended for puller in self._pullers)

    @property
    def begun(self) -> float:
        """When the first owner said that training stands, as :func:`time.perf_counter` does; 0.0: none did."""
        return min((puller.begun for puller in self._pullers if puller.begun), default=0.0)

    @property
    def adam_step(self) -> int:
        """How many updates the source world has made, as the owners said; -1: none of them did.

        Raises:
            TransferError: they do not say the same.
        """
        said = {puller.peer: puller.adam_step for puller in self._pullers if puller.adam_step >= 0}
        if len({*said.values()}) > 1:
            raise TransferError(f"owners have made different numbers of updates, by worker: {said}")
        return max(said.values(), default=-1)

    @property
    def stats(self) -> PullStats:
        """What was read so far."""

        def total(name: str) -> int:
            return sum(getattr(puller, name) for puller in self._pullers)

        return PullStats(
            bytes_sent=self._owner.bytes_sent[self._group] if self._owner is not None else 0,
            bytes_received=total("bytes_received"),
            bytes_early=total("bytes_early"),
            bytes_gradients=total("bytes_gradients"),
            digests_checked=total("digests_checked"),
            staging_peak_bytes=self._staging.peak_bytes,
            gradient_bytes=self._owner.gradient_bytes if self._owner is not None else 0,
            exposed_seconds=self._owner.exposed_seconds if self._owner is not None else 0.0,
        )

    def release(self) -> None:
        """Give the memory of copied gradients back, as all is proven."""
        if self._owner is not None:
            self._owner.release()

    def stop_reading(self) -> None:
        """Give the peers' memory back; nothing is read any more."""
        with ExitStack() as all_of_them:
            for puller in self._pullers:
                all_of_them.callback(puller.close)

    def cancel(self) -> None:
        """Throw out whoever waits, here and at the peers; from any thread."""
        if self._owner is not None:
            self._owner.cancel()
        for puller in self._pullers:
            puller.cancel()
        for connections in self._connections:
            connections.give_up()

    def close(self) -> None:
        """Give everything back, though some of it cannot be; none of its threads may run any more."""
        self.cancel()
        with ExitStack() as last_first:
            if self._agent is not None:
                last_first.callback(self._agent.close)
            for connections in self._connections:
                last_first.callback(connections.close)
            last_first.callback(self.stop_reading)
            if self._pool is not None:
                last_first.callback(self._pool.shutdown)
            if self._owner is not None:
                last_first.callback(self._owner.close)
