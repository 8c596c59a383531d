"""Memory that gradients pass through on their way into a replayed update: its limit, and how much was needed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from liver_slurm.transfer.optimizer_replay import GRADIENT_BYTES


class Staging:
    """Shared by all threads of a worker that replay; each takes no more than its share at a time."""

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
        """A block in which the calling thread has so many bytes."""
        with self._lock:
            self._used += nbytes
            self.peak_bytes = max(self.peak_bytes, self._used)
        try:
            yield
        finally:
            with self._lock:
                self._used -= nbytes
