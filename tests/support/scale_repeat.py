"""Something that is done again and again beside everything else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Repeated:
    """Calls a function over and over in a thread of its own, so that nothing else waits for it."""

    def __init__(self, action: Callable[[], None], every: float) -> None:
        """``every``: seconds from the end of a call to the next one."""
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._calls = self._pool.submit(self._repeat, action, every)

    def _repeat(self, action: Callable[[], None], every: float) -> None:
        while not self._over.is_set():
            action()
            self._over.wait(every)

    def check(self) -> None:
        """Raise what the function has raised; it is not called any more then."""
        if self._calls.done():
            self._calls.result()

    def close(self) -> None:
        """Wait for the call that is under way; there is no other."""
        self._over.set()
        self._pool.shutdown()
