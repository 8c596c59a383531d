"""Asks about the live job, and submits its successor, in a thread of its own: a scheduler may take its time."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor

from liver_slurm.base.errors import ClusterError
from liver_slurm.coordinator.core.io import Input, LiveJobSeen, SuccessorAnswer
from liver_slurm.scheduler.ports import LiveJob, LiveJobSource

log = logging.getLogger(__name__)

SELDOM, OFTEN = 60.0, 15.0
"""Seconds between looks: while there is no successor, and while there is one, whose workers speak for it."""


class LiveJobWatch:
    """Runs the source's calls one after another, so that a look after a submission shows what was submitted."""

    def __init__(self, source: LiveJobSource) -> None:
        self._source = source
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="live-job")
        self._look: Future[LiveJob] | None = None
        self._submission: Future[str] | None = None
        self._next_look = 0.0

    def poll(self, now: float) -> list[Input]:
        """What has come of earlier calls; asks for the next look when it is time."""
        given: list[Input] = []
        if self._look is not None and self._look.done():
            look, self._look = self._look, None
            given += self._seen(look, now)
        # After a look that was taken before it, so that the answer is the last word.
        if self._submission is not None and self._submission.done():
            given.append(self._answered(self._submission, now))
            self._submission = None
        if self._look is None and time.monotonic() >= self._next_look:
            self._look = self._thread.submit(self._source.observe)
        return given

    def submit(self) -> None:
        """Submit the successor, and look at it soon."""
        self._submission = self._thread.submit(self._source.submit)
        self._next_look = time.monotonic() + OFTEN

    def close(self, *, run_over: bool) -> None:
        """End the successor if the run is over.

        Raises:
            ClusterError: it may still be there.
        """
        try:
            if run_over:
                self._thread.submit(self._source.close).result()
        finally:
            self._thread.shutdown()

    def _seen(self, look: Future[LiveJob], now: float) -> list[Input]:
        try:
            job = look.result()
        except ClusterError as error:
            log.warning("the live job's time limit could not be asked for: %s", error)
            self._next_look = time.monotonic() + OFTEN
            return []
        waiting = job.successor is not None or self._submission is not None
        self._next_look = time.monotonic() + (OFTEN if waiting else SELDOM)
        return [LiveJobSeen(now, job)]

    def _answered(self, submission: Future[str], now: float) -> Input:
        try:
            return SuccessorAnswer(now, job_id=submission.result())
        except ClusterError as error:
            return SuccessorAnswer(now, error=str(error))
