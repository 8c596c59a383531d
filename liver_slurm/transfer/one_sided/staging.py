"""Memory that state and gradients pass through on their way: its limit, and how much was needed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from liver_slurm.transfer.optimizer_replay import GRADIENT_BYTES

_PINNED = 16 << 20
"""Bytes that are sent while the next are copied off a card, at most."""


class Staging:
    """Shared by all threads of a worker that stage; each takes no more than its share at a time."""

    def __init__(self, nbytes: int, threads: int) -> None:
        """
        Args:
            nbytes: the limit of all together.
            threads: how many there are at most.
        """
        self.share = max(GRADIENT_BYTES, nbytes // threads)
        """Bytes that one thread may have at a time; one element at least."""
        self._lock = threading.Lock()
        self._used = 0
        self.peak_bytes = 0

    @contextmanager
    def use(self, nbytes: int) -> Iterator[None]:
        """Run a block in which the calling thread has so many bytes."""
        with self._lock:
            self._used += nbytes
            self.peak_bytes = max(self.peak_bytes, self._used)
        try:
            yield
        finally:
            with self._lock:
                self._used -= nbytes

    def pinned(self) -> torch.Tensor:
        """Pinned memory for what goes between a card and a connection, uint8: half a share, and kept."""
        nbytes = max(GRADIENT_BYTES, min(self.share // 2, _PINNED))
        with self._lock:
            self._used += nbytes
            self.peak_bytes = max(self.peak_bytes, self._used)
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
