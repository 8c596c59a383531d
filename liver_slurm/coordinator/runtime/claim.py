"""Fencing a coordinator that Slurm has given up but that still runs, as on a node of which only slurmd died.

It holds the journal, so that of the job's next start could not begin. Each coordinator writes into the run directory
which start of the job it belongs to, and lets go of the run when it finds that of a later one there.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from liver_slurm.base.errors import LiverError
from liver_slurm.scheduler.ports import JobStart

INTERVAL = 1.0
"""Seconds between looks; a new coordinator waits several times as long for the journal."""


class Outdated(LiverError):
    """The job was started again since: this process has no part in the run any more."""

    exit_code = 3  # as if told to end: nobody starts it again


class Claim:
    """What the run directory says about whose the run is."""

    def __init__(self, file: Path, start: JobStart) -> None:
        self._file, self._start = file, start
        self._next_look = 0.0

    def make(self) -> None:
        """Claim the run for this start of the job.

        Raises:
            Outdated: a later start of the same job has claimed it.
        """
        self._check()
        fresh = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(self._start))
        fresh.replace(self._file)

    def check(self) -> None:
        """Look whether the claim still holds, at most every :data:`INTERVAL` seconds; raises like :meth:`make`."""
        if self._start.job_id and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + INTERVAL
            self._check()

    def _check(self) -> None:
        try:
            held = msgspec.json.decode(self._file.read_bytes(), type=JobStart)
        except FileNotFoundError:
            return
        if held.job_id == self._start.job_id and held.restarts > self._start.restarts:
            raise Outdated(f"job {held.job_id} was started again ({held.restarts} times): the run is not ours any more")
