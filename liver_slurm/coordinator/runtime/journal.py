"""The coordinator's journal: records in order, durable when :meth:`Journal.append` returns.

SQLite in rollback mode with full synchronisation: the run directory lies on a network file system, where write-ahead
logs do not work.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec

from liver_slurm.base.clock import Clock, SystemClock
from liver_slurm.base.errors import ExitCode, LiverError
from liver_slurm.coordinator.core.records import Record

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

    def append(self, record: Record) -> None:
        """Add one record; it is on disk when this returns."""
        row = (self._clock.now(), msgspec.json.encode(record).decode())
        self._database.execute("INSERT INTO records (time, record) VALUES (?, ?)", row)

    def read(self) -> list[Record]:
        """All records, oldest first.

        Raises:
            LiverError: a record is not one of ours.
        """
        return _decoded(self._database.execute("SELECT record FROM records ORDER BY id").fetchall())

    def close(self) -> None:
        """Close; another coordinator may open it."""
        self._database.close()


def read_unless_held(path: Path) -> list[Record] | None:
    """All records; None while a coordinator holds the journal, or if there is none yet.

    Raises:
        LiverError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0.0)) as database:
            rows = database.execute("SELECT record FROM records ORDER BY id").fetchall()
    except sqlite3.OperationalError:
        return None
    except sqlite3.DatabaseError as error:
        raise LiverError(f"{path} is damaged: {error}") from None
    return _decoded(rows)


def _decoded(rows: list[tuple[str]]) -> list[Record]:
    try:
        return [_decoder.decode(text) for (text,) in rows]
    except msgspec.DecodeError as error:
        raise LiverError(f"the journal holds a record that this version does not know: {error}") from None
