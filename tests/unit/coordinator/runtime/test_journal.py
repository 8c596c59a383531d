"""The journal: what it takes it gives back, and one coordinator at a time has it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest
from event_samples import committed_stats

from liver_slurm.base.errors import LiverError
from liver_slurm.coordinator.core.records import AttemptAborted, Committed, Ended, EpochStarted, Record, RequestTaken
from liver_slurm.coordinator.core.recovery import ended, next_epoch
from liver_slurm.coordinator.runtime.journal import Journal

RECORDS: list[Record] = [
    EpochStarted(epoch=1),
    Committed(
        generation=3,
        layout="tp1pp1dp2",
        members=("a", "b"),
        source_layout="tp1pp1dp1",
        source_members=("a",),
        source_generation=1,
        step=7,
        cause="capacity",
        reason="ä",
        summary={"pause": 1.5, "to": "x"},
    ),
    AttemptAborted(generation=4, reason="no"),
    RequestTaken(number=0, layout="", workers=3, at_step=-1),
    EpochStarted(epoch=2),
]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    for record in RECORDS:
        journal.append(record)
    journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    assert again.read() == RECORDS
    assert next_epoch(again.read()) == 3
    assert ended(RECORDS) is None
    assert ended([*RECORDS, Ended(code=3, reason="x")]) == Ended(code=3, reason="x")
    again.close()


def test_one_coordinator_at_a_time(tmp_path: Path) -> None:
    # LS-13
    first = Journal(tmp_path / "journal.sqlite", patience=0.1)
    with pytest.raises(LiverError, match="does another coordinator of this run live"):
        Journal(tmp_path / "journal.sqlite", patience=0.1)
    first.close()
    Journal(tmp_path / "journal.sqlite").close()


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"no database" * 100)
    with pytest.raises(LiverError, match="is damaged"):
        Journal(tmp_path / "damaged")
    journal = Journal(tmp_path / "newer")
    journal.close()
    with sqlite3.connect(tmp_path / "newer") as database:
        database.execute("""INSERT INTO records (time, record) VALUES (0, '{"type":"Unheard"}')""")
    database.close()
    with pytest.raises(LiverError, match="does not know"):
        Journal(tmp_path / "newer").read()


def test_no_write_ahead_log(tmp_path: Path) -> None:
    # LS-6
    journal = Journal(tmp_path / "journal.sqlite")
    journal.append(RECORDS[0])
    assert not list(tmp_path.glob("*-wal"))
    journal.close()


def test_the_figures_of_a_commit_record_of_another_version(tmp_path: Path) -> None:
    figures = committed_stats().to_document()
    missing = {"bytes_early", "bytes_gradients", "hook_s", "gradient_staging_bytes", "state_peak_bytes", "late_layers"}
    older = {key: figures[key] for key in figures if key not in missing}
    journal = Journal(tmp_path / "journal.sqlite")
    for summary in (older, {**figures, "joules": 5}, {}):
        record = RECORDS[1]
        assert isinstance(record, Committed)
        journal.append(msgspec.structs.replace(record, summary=summary))
    read = [record for record in journal.read() if isinstance(record, Committed)]
    journal.close()
    assert [record.stats for record in read] == [committed_stats(), committed_stats(), None]
    assert read[1].summary["joules"] == 5, "the journal gives back what was written"
