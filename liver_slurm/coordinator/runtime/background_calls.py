"""Talks to the standby source in a thread of its own: a scheduler may take its time, a worker's notice may not wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from liver_slurm.base.errors import ClusterError
from liver_slurm.base.query_budget import QueryBudget
from liver_slurm.coordinator.core.io import CapacitySeen, Input, LaunchRefused
from liver_slurm.scheduler.ports import CapacitySnapshot, StandbyProvider

log = logging.getLogger(__name__)


class SupplyWatch:
    """Runs the source's calls one after another, in the order in which they were asked for.

    So a look at the supply that is asked for after a launch sees the launched jobs.
    """

    def __init__(self, source: StandbyProvider, interval: float, budget: QueryBudget | None = None) -> None:
        """``interval``: seconds from one look to the next, if ``budget``, which counts the source's queries, allows."""
        self._source, self._interval, self._budget = source, interval, budget
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="standby-source")
        self._pending: list[tuple[Future[Any], Callable[[Future[Any], float], Input | None]]] = []
        self._looking = False
        self._next_look = 0.0
        self._last = CapacitySnapshot(time=0.0, jobs=())

    def poll(self, now: float) -> list[Input]:
        """What has come of earlier calls; asks for the next look when it is time."""
        done = [(future, handle) for future, handle in self._pending if future.done()]
        self._pending = [entry for entry in self._pending if not entry[0].done()]
        inputs = [given for future, handle in done if (given := handle(future, now)) is not None]
        if not self._looking and time.monotonic() >= self._next_look:
            self._looking = True
            self._pending.append((self._thread.submit(self._source.observe), self._seen))
        return inputs

    def launch(self, count: int, unit: int, partition: str) -> None:
        """Start standby jobs of a unit in a partition."""
        self._pending.append((self._thread.submit(self._source.launch, count, unit, partition), _launched))

    def release(self, job_id: str) -> None:
        """End one standby job."""
        self._pending.append((self._thread.submit(self._source.release, job_id), _released))

    def close(self, *, end_jobs: bool = True) -> None:
        """End all standby jobs, or leave them to the coordinator that goes on with the run.

        Raises:
            ClusterError: some may still be there.
        """
        try:
            if end_jobs:
                self._thread.submit(self._source.close).result()
        finally:
            self._thread.shutdown()

    def _seen(self, future: Future[CapacitySnapshot], now: float) -> Input:
        self._looking = False
        self._next_look = time.monotonic() + self._interval
        if self._budget is not None:
            self._next_look = max(self._next_look, self._budget.due())
        try:
            self._last = future.result()
        except ClusterError as error:
            self._last = replace(self._last, blind=str(error))
        asked = self._budget.last_minute() if self._budget is not None else None
        return CapacitySeen(now, replace(self._last, queries=asked))


def _launched(future: Future[list[str]], now: float) -> Input | None:
    try:
        log.info("standby jobs started: %s", ", ".join(future.result()))
    except ClusterError as error:
        return LaunchRefused(now, str(error))
    return None


def _released(future: Future[None], now: float) -> Input | None:
    try:
        future.result()
    except ClusterError as error:
        log.warning("a standby job could not be ended: %s", error)  # its time limit ends it
    return None
