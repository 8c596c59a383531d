"""How fast state will come in: measured with a little of nothing, once all is prepared, while training goes on."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

import torch

from liver_slurm.transfer import threads
from liver_slurm.transfer.transports.base import Transport

PROBE_BYTES = 1 << 20
"""Enough to see a link's rate beyond its latency, little enough to disturb nobody."""
PROBES = 3
"""From each peer: one that meets a busy core does not decide alone."""


def probe(transport: Transport, targets: Iterable[int], sources: Collection[int]) -> float:
    """Send a little to every peer that state goes to, and time what arrives; every worker must.

    Returns:
        bytes a second, all sources together; 0.0: there are none.

    Raises:
        TransferError: a peer is gone.
    """
    arrivals: list[tuple[float, float]] = []
    data = torch.zeros(PROBE_BYTES, dtype=torch.uint8)

    def receive(peer: int) -> None:
        arrived = torch.empty_like(data)
        transport.receive(peer, arrived[:1]).wait()  # from here on both ends are there
        for _ in range(PROBES):
            begun = time.perf_counter()
            transport.receive(peer, arrived).wait()
            arrivals.append((begun, time.perf_counter()))

    with threads.pool(max(1, len(sources))) as pool:
        receiving = [pool.submit(receive, peer) for peer in sources]
        for peer in targets:
            transport.send(peer, data[:1]).wait()
            for _ in range(PROBES):
                transport.send(peer, data).wait()
        for each in receiving:
            each.result()
    return rate(arrivals, PROBE_BYTES)


def rate(arrivals: Iterable[tuple[float, float]], nbytes: int) -> float:
    """Bytes a second of messages that took so long each: (begin, end), ``nbytes`` each.

    Sources are ready at different times, and the time in which nothing was under way counts for nothing.
    """
    count, busy, until = 0, 0.0, 0.0
    for begin, end in sorted(arrivals):
        count += 1
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return count * nbytes / busy if busy else 0.0
