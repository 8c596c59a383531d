"""The run's journal, and which coordinator may write it: never two at once.

Records are in order, and durable when :meth:`Journal.append` returns: SQLite in rollback mode with full
synchronisation, as the run directory lies on a network file system, where write-ahead logs do not work.

Two things say who owns the run. The journal is the lease: a coordinator holds it exclusively while it lives, and what
it has written there last, that it has started or that it has handed over, names the job whose coordinator goes on; any
other one waits until that job is over. The fencing token in the run directory says which start of that job may act:
Slurm may have given up a coordinator that still runs and holds the journal, as on a node of which only slurmd died.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from liver_slurm.base.clock import Clock, SystemClock
from liver_slurm.base.errors import ClusterError, ExitCode, LiverError
from liver_slurm.base.files import replace_file
from liver_slurm.coordinator.core.records import EpochStarted, HandedOver, Record, last_outcome
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import read_run_info
from liver_slurm.scheduler.ports import JobStart

log = logging.getLogger(__name__)

_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
_TABLE = "CREATE TABLE IF NOT EXISTS records (id INTEGER PRIMARY KEY, time REAL NOT NULL, record TEXT NOT NULL)"


class JournalBusy(LiverError):
    """Another process has the journal open."""

    exit_code = ExitCode.BROKE_DOWN  # it may be let go of, so it is tried again


class Journal:
    """Appends and reads records; used by one coordinator process at a time."""

    def __init__(self, path: Path, clock: Clock | None = None, patience: float = 5.0) -> None:
        """Open or make the journal.

        Args:
            clock: dates the records; default: the machine's.
            patience: seconds that another process may take to let go of it.

        Raises:
            JournalBusy: another coordinator of this run has it open.
            LiverError: the file is damaged.
        """
        self._clock = clock or SystemClock()
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=patience)
            self._database.execute("PRAGMA journal_mode = DELETE")
            self._database.execute("PRAGMA synchronous = FULL")
            # Held until the process ends, however it ends: a second coordinator must not decide beside this one.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute(_TABLE)
            self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            why = "does another coordinator of this run live?"
            if "locked" not in str(error):
                why += (
                    " Or are there no file locks? `liver-slurm doctor` tests them; Lustre needs the mount option flock"
                )
            raise JournalBusy(f"{path} cannot be opened ({error}): {why}") from None
        except sqlite3.DatabaseError as error:
            raise LiverError(f"{path} is damaged: {error}") from None

    def append(self, *records: Record) -> None:
        """Add records, all or none; they are on disk when this returns, with one wait for it."""
        rows = [(self._clock.now(), msgspec.json.encode(record).decode()) for record in records]
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany("INSERT INTO records (time, record) VALUES (?, ?)", rows)
            self._database.execute("COMMIT")
        except sqlite3.Error:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def read(self) -> list[Record]:
        """Return all records, oldest first.

        Raises:
            LiverError: a record is not one of ours.
        """
        return _decoded(self._database.execute("SELECT record FROM records ORDER BY id").fetchall())

    def close(self) -> None:
        """Close; another coordinator may open it."""
        self._database.close()


def read_unless_held(path: Path) -> list[Record] | None:
    """Return all records; None while a coordinator holds the journal, or if there is none yet.

    Raises:
        LiverError: it is damaged.
        sqlite3.OperationalError: it cannot be read now, for another reason.
    """
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0.0)) as database:
            rows = database.execute("SELECT record FROM records ORDER BY id").fetchall()
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "no such table" in str(error):
            return None
        raise
    except sqlite3.DatabaseError as error:
        raise LiverError(f"{path} is damaged: {error}") from None
    return _decoded(rows)


def _decoded(rows: list[tuple[str]]) -> list[Record]:
    try:
        return [_decoder.decode(text) for (text,) in rows]
    except msgspec.DecodeError as error:
        raise LiverError(f"the journal holds a record that this version does not know: {error}") from None


# ---- ownership ------------------------------------------------------------------------------------------------------

LOOK = 0.5
"""Seconds between looks at the journal: training has no coordinator in that time."""
ASK = 5.0
"""Seconds between questions to Slurm, asked only while nobody holds the journal."""
SAY_AGAIN = 60.0
"""Seconds between two lines that say that the journal cannot be read."""
FENCE_LOOK = 1.0
"""Seconds between looks at the fencing token; a new coordinator waits several times as long for the journal."""


class Fenced(LiverError):
    """The job was started again since: this process has no part in the run any more."""

    exit_code = ExitCode.CANCELLED  # as if told to end: nobody starts it again


class _Token(msgspec.Struct, frozen=True, kw_only=True):
    """What the file says."""

    job_id: str = ""
    restarts: int = 0
    """Of the start of the job that may act."""
    epoch: int = 0
    """Of the last coordinator that held the journal."""


class FencingToken:
    """The start of the job that may act, as the run directory says, and the coordinator that does.

    A coordinator that holds the journal and sees the epoch of a later one there has lost it: file locks do not hold
    between nodes, as on Lustre with ``localflock``.
    """

    def __init__(self, file: Path, start: JobStart, clock: Clock) -> None:
        self._file, self._start, self._clock = file, start, clock
        self._next_look = 0.0
        self._epoch = 0
        self._trouble = ""
        """Why the file cannot be read; empty: it can."""

    def take(self) -> None:
        """Write that this start of the job may act.

        Raises:
            Fenced: a later start of the same job may.
        """
        self._write(self._check())

    def hold(self, epoch: int) -> None:
        """Write that the coordinator of this epoch holds the journal."""
        self._epoch = epoch
        self._write(epoch)

    def check(self) -> None:
        """Look whether this start may still act, at most every :data:`FENCE_LOOK` seconds.

        Raises:
            Fenced: a later start of the same job may, or another coordinator holds the journal.
        """
        if self._clock.now() >= self._next_look:
            self._next_look = self._clock.now() + FENCE_LOOK
            self._check()

    def _write(self, epoch: int) -> None:
        start = self._start
        replace_file(self._file, msgspec.json.encode(_Token(job_id=start.job_id, restarts=start.restarts, epoch=epoch)))

    def _check(self) -> int:
        """Return the epoch that the file names; 0: it cannot be read, or there is none."""
        try:
            content = self._file.read_bytes()
        except OSError as error:  # a file system that is away fences nobody; nor can anything be decided without it
            first = isinstance(error, FileNotFoundError) and not self._epoch
            self._note("" if first else str(error.strerror))
            return 0
        self._note("")
        held = msgspec.json.decode(content, type=_Token)
        if held.job_id and held.job_id == self._start.job_id and held.restarts > self._start.restarts:
            raise Fenced(f"job {held.job_id} was started again ({held.restarts} times): the run is not ours any more")
        if 0 < self._epoch < held.epoch:
            raise Fenced(
                f"another coordinator has taken the run (epoch {held.epoch}, ours is {self._epoch}) though we hold its "
                "journal: file locks do not hold here; `liver-slurm doctor` tests them, and Lustre needs the mount "
                "option flock"
            )
        return held.epoch

    def _note(self, trouble: str) -> None:
        """Say once that the file cannot be read, and once that it can be again."""
        if trouble != self._trouble:
            now = f"cannot be read ({trouble}), so nobody is fenced" if trouble else "can be read again"
            log.warning("%s %s", self._file, now)
            self._trouble = trouble


@dataclass(frozen=True)
class Lease:
    """What the coordinator that owns the run has."""

    journal: Journal
    records: list[Record]
    """What the journal held when it was opened."""
    fence: FencingToken


def acquire(
    run_dir: RunDir, start: JobStart, has_ended: Callable[[str], bool], clock: Clock, *, wait: bool
) -> Lease | None:
    """Return the run, once the coordinator of this start of the job may act; None: another job goes on with it.

    Args:
        has_ended: whether a job has, as Slurm says; raises ClusterError.
        wait: for the job that may act to hand over, or to end.

    Raises:
        Fenced: a later start of the same job may act.
        LiverError: another coordinator of this run acts, and it was not to be waited for.
    """
    fence = FencingToken(run_dir.fence_file, start, clock)
    if not wait:
        fence.take()
    try:
        journal, records = open_journal(run_dir.journal, start.job_id, has_ended, clock, wait=wait)
    except JournalBusy:
        # We may have died between handing over and the end of our process; the successor has said who it is.
        if start.job_id and read_run_info(run_dir).job_id not in ("", start.job_id):
            return None
        raise
    if journal is None:
        return None
    if wait:
        fence.take()
    return Lease(journal, records, fence)


def holder(records: Sequence[Record]) -> str:
    """Return the job whose coordinator may act; empty: any, because there was none yet or it was in no job."""
    last = next((record for record in reversed(records) if isinstance(record, EpochStarted | HandedOver)), None)
    return last.job_id if last is not None else ""


def open_journal(
    path: Path, job_id: str, has_ended: Callable[[str], bool], clock: Clock, *, wait: bool
) -> tuple[Journal | None, list[Record]]:
    """Return the journal and its records, as soon as the coordinator of job ``job_id`` may act; no journal if it may
    not.

    ``job_id``: our own job; empty: none. The rest, and what is raised, as for :func:`acquire`.
    """
    while True:
        granted = _wait_for_turn(path, job_id, has_ended, clock) if wait else ""
        journal = Journal(path, clock)
        records = journal.read()
        now = holder(records)
        # Looked at again, because another one may have opened it in the meantime.
        if now in ("", job_id, granted) or last_outcome(records) is not None:
            return journal, records
        if not wait and has_ended(now):
            return journal, records
        journal.close()
        if not wait:
            log.info("job %s goes on with the run", now)
            return None, records


def _wait_for_turn(journal: Path, job_id: str, has_ended: Callable[[str], bool], clock: Clock) -> str:
    """Return the job in whose place that of ``job_id`` may act, once it may; its own if it was handed over to."""
    next_question = next_word = 0.0
    while True:
        records = None
        try:
            records = read_unless_held(journal)
        except sqlite3.OperationalError as error:
            if clock.now() >= next_word:
                next_word = clock.now() + SAY_AGAIN
                log.warning("%s cannot be read, and is tried again: %s", journal, error)
        if records is not None:
            now = holder(records)
            if now in ("", job_id) or last_outcome(records) is not None:
                return now
            if clock.now() >= next_question:
                next_question = clock.now() + ASK
                try:
                    if has_ended(now):
                        log.info("job %s is over without having handed over", now)
                        return now
                except ClusterError as error:
                    log.warning("%s", error)
        clock.sleep(LOOK)
