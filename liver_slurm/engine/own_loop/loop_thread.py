"""The thread that a user's loop runs in: it and the worker's training thread run by turns, never both."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Literal, NamedTuple

from liver_slurm.base.errors import RunIsOver

log = logging.getLogger(__name__)

Word = Literal["registered", "gradients", "completed", "ended"]
"""How far the loop has come: it has declared its state; it is about to change it; the step is over; it has returned."""
_PATIENCE = 10.0
"""Seconds that a loop may take to unwind, once its world is over."""


class WorldOver(BaseException):
    """Raised inside a loop whose world is over: another call of the same function goes on in the next one.

    Not an ``Exception``, so that a loop which handles those does not hold it up; ``finally`` blocks run as usual.
    """


class Begin(NamedTuple):
    """Order to a loop: begin with a step, or go on with the one that it is in."""

    step: int = -1


NO_STEP = Begin()


class _Ended(NamedTuple):
    error: BaseException | None


class LoopThread:
    """Runs a body, which hands over with :meth:`tell` and goes on when :meth:`go_on` is called."""

    def __init__(self, body: Callable[[], None]) -> None:
        self._body = body
        self._orders: queue.SimpleQueue[Begin | None] = queue.SimpleQueue()
        self._words: queue.SimpleQueue[Word | _Ended] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="own loop", daemon=True)
        self._begun = self.over = False
        self._ending = threading.Lock()

    # ---- called by the worker

    def go_on(self, order: Begin = NO_STEP) -> Word:
        """Let the body run until it hands over; returns its word.

        Raises:
            RunIsOver: it has ended before.
            BaseException: what the body raised.
        """
        if self.over:
            raise RunIsOver("the loop is over, and was to go on")
        if self._begun:
            self._orders.put(order)
        else:
            self._begun = True
            self._thread.start()
        word = self._words.get()
        if not isinstance(word, _Ended):
            return word
        self.over = True
        if word.error is not None:
            raise word.error
        return "ended"

    def end(self) -> None:
        """Have the body unwind, if it runs, and wait for it; from any thread."""
        with self._ending:
            self._end()

    def _end(self) -> None:
        if not self._begun or self.over:
            return
        self._orders.put(None)
        self._thread.join(_PATIENCE)
        self.over = True
        if self._thread.is_alive():
            log.warning("a loop does not end %g s after its world is over", _PATIENCE)
            return
        word = self._words.get()
        while not isinstance(word, _Ended):
            word = self._words.get()
        if word.error is not None:
            log.warning("a loop failed as its world was over", exc_info=word.error)

    # ---- called by the body

    def tell(self, word: Word) -> Begin:
        """Hand over, and wait for the order to go on.

        Raises:
            WorldOver: there is nothing more to do in this world.
        """
        self._words.put(word)
        order = self._orders.get()
        if order is None:
            raise WorldOver
        return order

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._body()
        except WorldOver:
            log.debug("a loop has unwound")
        except SystemExit as caught:  # in a worker's thread it would end that thread without a word
            error = RunIsOver(f"train.loop called sys.exit({caught.code!r}); a loop that is over returns")
            error.__cause__ = caught
        except BaseException as caught:  # noqa: BLE001 - a thread's edge: whoever waits for its word raises it
            error = caught
        self._words.put(_Ended(error))
