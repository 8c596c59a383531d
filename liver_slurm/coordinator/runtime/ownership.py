"""Which job's coordinator may act: never two at once.

The journal says it. A coordinator holds it exclusively while it lives; what it has written there last, that it has
started or that it has handed over, names the job whose coordinator goes on. Any other one waits until that job is over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from liver_slurm.base.errors import ClusterError
from liver_slurm.coordinator.core import recovery
from liver_slurm.coordinator.core.records import EpochStarted, HandedOver, Record
from liver_slurm.coordinator.runtime.journal import Journal, read_unless_held

log = logging.getLogger(__name__)

LOOK = 0.5
"""Seconds between looks at the journal: training has no coordinator in that time."""
ASK = 5.0
"""Seconds between questions to Slurm, asked only while nobody holds the journal."""


def holder(records: Sequence[Record]) -> str:
    """The job whose coordinator may act; empty: any, because there was none yet or it was in no job."""
    last = next((record for record in reversed(records) if isinstance(record, EpochStarted | HandedOver)), None)
    return last.job_id if last is not None else ""


def open_journal(
    path: Path, job_id: str, has_ended: Callable[[str], bool], *, wait: bool
) -> tuple[Journal | None, list[Record]]:
    """The journal and its records, as soon as the coordinator of job ``job_id`` may act; no journal if it may not.

    Args:
        path: the journal.
        job_id: our own job; empty: none.
        has_ended: whether a job has, as Slurm says; raises ClusterError.
        wait: for the job that may act to hand over, or to end.

    Raises:
        LiverError: another coordinator of this run acts, and it was not to be waited for.
    """
    while True:
        granted = _wait_for_turn(path, job_id, has_ended) if wait else ""
        journal = Journal(path)
        records = journal.read()
        now = holder(records)
        # Looked at again, because another one may have opened it in the meantime.
        if now in ("", job_id, granted) or recovery.ended(records) is not None:
            return journal, records
        if not wait and has_ended(now):
            return journal, records
        journal.close()
        if not wait:
            log.info("job %s goes on with the run", now)
            return None, records


def _wait_for_turn(journal: Path, job_id: str, has_ended: Callable[[str], bool]) -> str:
    """The job in whose place that of ``job_id`` may act, once it may; its own if it was handed over to."""
    next_question = 0.0
    while True:
        records = read_unless_held(journal)
        if records is not None:
            now = holder(records)
            if now in ("", job_id) or recovery.ended(records) is not None:
                return now
            if time.monotonic() >= next_question:
                next_question = time.monotonic() + ASK
                try:
                    if has_ended(now):
                        log.info("job %s is over without having handed over", now)
                        return now
                except ClusterError as error:
                    log.warning("%s", error)
        time.sleep(LOOK)
