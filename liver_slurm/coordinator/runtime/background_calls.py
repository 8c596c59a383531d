"""Calls to a scheduler that may take its time, in a thread; what comes of them become inputs of the core."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from liver_slurm.base.clock import Clock
from liver_slurm.base.errors import ClusterError
from liver_slurm.coordinator.core.io import Input

log = logging.getLogger(__name__)

T = TypeVar("T")
Done = Callable[[T, float], Sequence[Input]]
"""Makes inputs of what a call returned, given the time; runs in the thread that polls."""
Failed = Callable[[str, float], Sequence[Input]]
"""Makes inputs of the error of a call that the scheduler refused, or that broke down."""


class BackgroundCalls:
    """Makes calls one after another, and answers them in that order.

    So a look that is asked for after a launch shows what was launched. One call may be repeated: the look.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        """``name``: of the thread, which starts with the first call."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._clock = clock
        self._pending: deque[tuple[Future[Any], Callable[[Future[Any], float], Sequence[Input]]]] = deque()
        self._look: Callable[[], None] | None = None
        self._next_look = 0.0

    def ask(self, call: Callable[[], T], done: Done[T], failed: Failed) -> None:
        """Make a call after those that were asked for before it."""
        self._pending.append((self._thread.submit(call), partial(_answer, done, failed)))

    def repeat(self, look: Callable[[], T], done: Done[T], failed: Failed) -> None:
        """Make this call now, and again when :meth:`look_in` says; ``done`` and ``failed`` say it."""
        self._look = partial(self.ask, look, done, failed)

    def look_in(self, seconds: float) -> None:
        """Set when the next look is taken, seconds from now."""
        self._next_look = self._clock.now() + seconds

    def poll(self, now: float) -> list[Input]:
        """Inputs that have come of earlier calls; takes the next look when it is due."""
        given: list[Input] = []
        while self._pending and self._pending[0][0].done():
            future, answer = self._pending.popleft()
            given += answer(future, now)
        if self._look is not None and self._clock.now() >= self._next_look:
            self._next_look = math.inf  # until it has come
            self._look()
        return given

    def close(self, last: Callable[[], object] | None = None) -> None:
        """Make one last call, if any, after all that were asked for; wait for it and end the thread.

        Raises:
            Exception: what the last call raised.
        """
        try:
            if last is not None:
                self._thread.submit(last).result()
        finally:
            self._thread.shutdown()


def _answer(done: Done[T], failed: Failed, call: Future[T], now: float) -> Sequence[Input]:
    try:
        value = call.result()
    except ClusterError as error:
        return failed(str(error), now)
    except Exception as error:  # a watcher that breaks makes the coordinator blind; it must not end it
        log.exception("a call to the scheduler broke down")
        return failed(f"{type(error).__name__}: {error}".splitlines()[0], now)
    return done(value, now)
