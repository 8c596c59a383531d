"""The threads of one worker's transfer, which fail together: the first error is what everybody who waits is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from liver_slurm.base.errors import TransferError, traceback_of
from liver_slurm.transfer import threads

log = logging.getLogger(__name__)


class Crew:
    """Runs the bodies of a transfer's threads; any thread may call."""

    def __init__(self, give_up: Callable[[], None]) -> None:
        """
        Args:
            give_up: throws out whoever waits for a peer, here and there; called when a thread has failed, unless
                somebody waits for the end, who says why before peers see the connections close.
        """
        self._give_up = give_up
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None
        self._running = 0
        self._awaited = False

    @property
    def idle(self) -> bool:
        """No thread runs (any more)."""
        return self._running == 0

    def start(self, bodies: Sequence[Callable[[], None]]) -> None:
        """Start a thread for each body, unless that has happened or something has failed."""
        with self._changed:
            if self._threads or self._failure is not None:
                return
            self._threads = [
                threading.Thread(target=self._guarded, args=(body,), name="stream", daemon=True) for body in bodies
            ]
            self._running = len(self._threads)
            for thread in self._threads:
                thread.start()

    def awaited(self) -> None:
        """Somebody waits for the end from now on."""
        with self._changed:
            self._awaited = True

    def notify(self) -> None:
        """Something has changed that :meth:`wait` may wait for."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, reached: Callable[[], bool]) -> None:
        """Wait for a condition.

        Raises:
            TransferError: a thread has failed, or :meth:`fail` was called.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or reached())
            if self._failure is not None:
                lines = str(self._failure).splitlines() or [type(self._failure).__name__]
                raise TransferError(lines[0]) from self._failure

    def fail(self, error: BaseException) -> None:
        """Make this the crew's error, unless it has one."""
        with self._changed:
            if self._failure is None:
                self._failure = error
                self._changed.notify_all()

    def join(self) -> None:
        """Wait until all threads have ended."""
        for thread in self._threads:
            thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            threads.alone()
            work()
        except BaseException as error:  # a thread's edge: whoever waits raises it, with its first line alone
            if (defect := traceback_of(error)) is not None:
                log.error("a thread of a transfer failed", exc_info=defect)
            self.fail(error)
            if not self._awaited:
                self._give_up()
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
