"""The metrics of a run as its writing rank keeps them: in a thread of its own, whatever the file system does.

Lines that cannot be written wait here and are written later. When another worker becomes the writer, its first line
waits until the last one of the writer before is in the file: clients of a network file system would overwrite each
other's lines at its end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from liver_slurm.rundir.metrics import MetricsWriter, Stepped, last_step

MOST_WAITING = 200_000
"""Steps that are kept while the file cannot be written; then the oldest are given up, and said."""
RETRY = 2.0
"""Seconds between two attempts."""
HANDOFF = 30.0
"""Seconds that the last line of the writer before is waited for."""

log = logging.getLogger(__name__)

Report = Callable[[int, str], None]
"""Told how many steps wait, and why; 0 and nothing: all are written."""


class MetricsFile:
    """Any thread may call; none of them waits for the file but in :meth:`drain`."""

    def __init__(self, path: Path, report: Report, retry: float = RETRY, handoff: float = HANDOFF) -> None:
        self._path, self._report, self._retry, self._handoff = path, report, retry, handoff
        self._writer = MetricsWriter(path)
        self._changed = threading.Condition()
        self._waiting: deque[Stepped] = deque()
        self._after = -1
        self._until = 0.0
        self._fresh = False
        self._writing = False
        self._trouble = ""
        self.given_up = 0
        """Steps that are in no file, and never will be."""
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def begin(self, after: int) -> None:
        """Become the writer, or go on as it, in the file that has the name now.

        Args:
            after: the last step of whoever was the writer before; -1: there was nobody.
        """
        with self._changed:
            self._after, self._until, self._fresh = after, time.monotonic() + self._handoff, True

    def append(self, metrics: Stepped) -> None:
        """Append a step, soon."""
        with self._changed:
            self._waiting.append(metrics)
            if len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self.given_up += 1
            if not self._thread.is_alive():
                self._thread.start()
            self._changed.notify_all()

    def drain(self, seconds: float) -> str:
        """Wait until all steps are in the file; returns what is not, for people; empty: all are."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._writing, seconds)
            missing = f"{self.given_up} steps, given up" if self.given_up else ""
            if self._waiting:
                first, last = self._waiting[0].step, self._waiting[-1].step
                missing = f"steps {first} to {last} ({self._trouble or 'the file system does not answer'})"
            return missing

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                batch = list(self._waiting)
                fresh, self._fresh, self._writing = self._fresh, False, True
            written, error = 0, ""
            try:
                if fresh:
                    self._writer.reopen()
                if self._may_write():
                    for metrics in batch:
                        self._writer.append(metrics)
                        written += 1
                    self._writer.sync()
            except OSError as caught:
                error = str(caught.strerror)
            self._note(batch[:written], error)
            if written < len(batch):
                time.sleep(self._retry if error else min(self._retry, 0.1))

    def _may_write(self) -> bool:
        """Return whether the writer before has written its last line, or has had time enough."""
        after = self._after
        if after < 0:
            return True
        behind = last_step(self._path) < after
        if behind and time.monotonic() < self._until:
            return False
        if behind:
            log.warning("the metrics of step %d have not come in %g s; they go on without", after, self._handoff)
        self._after = -1
        return True

    def _note(self, written: list[Stepped], error: str) -> None:
        with self._changed:
            for metrics in written:
                if self._waiting and self._waiting[0] is metrics:
                    self._waiting.popleft()
                else:  # it was given up while it was being written
                    self.given_up -= 1
            self._writing = False
            waiting, changed = len(self._waiting), error != self._trouble
            self._trouble = error
            self._changed.notify_all()
        if changed:
            log.warning("metrics: %s", f"{waiting} steps wait: {error}" if error else "all steps are written")
            self._report(waiting if error else 0, error)
