"""The journal: durable records, and never two coordinators that write it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from event_samples import committed_stats

from liver_slurm.base.clock import FakeClock
from liver_slurm.base.errors import LiverError
from liver_slurm.coordinator.core.records import (
    AttemptAborted,
    BegunAnew,
    Committed,
    Ended,
    EpochStarted,
    HandedOver,
    Record,
    RequestTaken,
    last_outcome,
    next_epoch,
    why_restart,
)
from liver_slurm.coordinator.runtime import journal as journals
from liver_slurm.coordinator.runtime.journal import (
    FENCE_LOOK,
    Fenced,
    FencingToken,
    Journal,
    JournalBusy,
    read_unless_held,
)
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import RunInfo, record_successor, write_run_info
from liver_slurm.scheduler.ports import JobStart

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
    assert last_outcome(RECORDS) is None
    assert last_outcome([*RECORDS, Ended(code=3, reason="x")]) == Ended(code=3, reason="x")
    again.close()


def test_records_that_come_together_are_written_together(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.append(*RECORDS[:2])
    journal.append(*RECORDS[2:])
    assert journal.read() == RECORDS
    journal.close()


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


# ---- the lease -----------------------------------------------------------------------------------------------------


def committed(*members: str) -> Committed:
    return Committed(
        generation=0, layout="tp1pp1dp1", members=members, source_layout="", source_members=(), source_generation=-1,
        step=0, cause="start", reason="", summary={},
    )  # fmt: skip


SEVEN, EIGHT = EpochStarted(epoch=1, job_id="7"), EpochStarted(epoch=2, job_id="8")


def test_who_holds_the_journal() -> None:
    assert journals.holder([]) == ""
    assert journals.holder([SEVEN, committed("live-0")]) == "7"
    assert journals.holder([SEVEN, HandedOver(job_id="8")]) == "8"
    assert journals.holder([SEVEN, HandedOver(job_id="8"), EIGHT, HandedOver(job_id="9")]) == "9"


@pytest.mark.parametrize(
    ("records", "anew_in"),
    [
        ([SEVEN, committed("live-0")], True),
        ([SEVEN, committed("live-0", "standby-3-0")], True),
        ([SEVEN, committed("live-8-0", "standby-3-0")], False),  # killed between its commit and the handover
        ([SEVEN, committed("live-0"), Ended(code=1, reason="")], False),
        ([SEVEN], False),
        ([SEVEN, committed("live-0"), BegunAnew(checkpoint="", step=0, steps_lost=0, reason="")], False),
        ([SEVEN, committed("live-8-0"), HandedOver(job_id="8"), EIGHT, committed("live-8-0")], False),
    ],
)
def test_when_a_successor_begins_anew(records: list[Any], anew_in: bool) -> None:
    assert (why_restart(records, JobStart("8")) is not None) is anew_in


def write(path: Path, *records: Any) -> None:
    journal = Journal(path)
    for record in records:
        journal.append(record)
    journal.close()


def test_the_successor_waits_for_the_journal_and_for_the_record_in_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    held = Journal(path)
    held.append(SEVEN)
    held.append(committed("live-8-0"))

    class Looks(FakeClock):
        looks = 0

        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            self.looks += 1
            if self.looks == 1:
                assert read_unless_held(path) is None
                held.close()  # killed, and about to be started again: job 7 runs
            elif self.looks == 2:
                assert len(read_unless_held(path) or ()) == 2
                write(path, HandedOver(job_id="8"))

    clock = Looks()
    journal, records = journals.open_journal(path, "8", lambda job: False, clock, wait=True)
    assert clock.looks == 2
    assert journal is not None
    assert journals.holder(records) == "8"
    journal.close()
    # Job 7's coordinator is started again, too late.
    assert journals.open_journal(path, "7", lambda job: False, clock, wait=False)[0] is None


def test_a_journal_that_cannot_be_read_is_spoken_of_each_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.sqlite"
    path.mkdir()  # as where a file system is away
    with pytest.raises(sqlite3.OperationalError):
        read_unless_held(path)

    class Until(FakeClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.now() > 1.5 * journals.SAY_AGAIN:
                path.rmdir()
                write(path, SEVEN, HandedOver(job_id="8"))

    journal, _ = journals.open_journal(path, "8", lambda job: False, Until(), wait=True)
    assert journal is not None
    journal.close()
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == [
        f"{path} cannot be read, and is tried again"
    ] * 2


def test_a_successor_goes_on_when_the_job_before_is_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    write(path, SEVEN, committed("live-0"))
    asked: list[str] = []

    def is_over(job: str) -> bool:
        asked.append(job)
        return True

    journal, _ = journals.open_journal(path, "8", is_over, FakeClock(), wait=True)
    assert journal is not None
    journal.close()
    assert asked == ["7"]


def test_a_coordinator_that_handed_over_and_died_leaves_the_run(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    write_run_info(run_dir, RunInfo(run_id="r", name="n", created=0.0, job_id="7"))
    write(run_dir.journal, SEVEN, committed("live-8-0"), HandedOver(job_id="8"))
    held = Journal(run_dir.journal)
    with pytest.raises(JournalBusy):  # whoever holds it may be of our own job, about to let go: tried again
        journals.acquire(run_dir, JobStart("7"), lambda job: False, FakeClock(), wait=False)
    record_successor(run_dir, "8")
    assert journals.acquire(run_dir, JobStart("7"), lambda job: False, FakeClock(), wait=False) is None
    held.close()


# ---- the fencing token ---------------------------------------------------------------------------------------------


def token(folder: Path, *start: object) -> FencingToken:
    return FencingToken(folder / "claim.json", JobStart(*start), FakeClock())  # type: ignore[arg-type]


def test_the_later_start_of_a_job_takes_over(tmp_path: Path) -> None:
    first, again = token(tmp_path, "7", 0), token(tmp_path, "7", 0)
    first.take()
    again.take()  # a coordinator that was started again within the same start
    first.check()
    later = token(tmp_path, "7", 1)
    later.take()
    with pytest.raises(Fenced, match="job 7 was started again"):
        token(tmp_path, "7", 0).check()
    with pytest.raises(Fenced):
        first.take()
    later.check()


def test_plain_processes_and_other_jobs_are_not_fenced(tmp_path: Path) -> None:
    token(tmp_path, "7", 3).take()
    for start in ((), ("8", 0)):
        token(tmp_path, *start).check()
        token(tmp_path, *start).take()


@pytest.mark.parametrize("start", [("7", 0), ()])
def test_a_coordinator_that_lost_its_journal_without_noticing_ends(tmp_path: Path, start: tuple[object, ...]) -> None:
    """Where locks do not hold between nodes, two may have it open."""
    clock = FakeClock(100.0)
    first = FencingToken(tmp_path / "claim.json", JobStart(*start), clock)  # type: ignore[arg-type]
    first.take()
    first.hold(1)
    token(tmp_path, *start).take()  # one that is started beside it, and does not get the journal
    clock.advance(FENCE_LOOK)
    first.check()
    second = token(tmp_path, *start)
    second.take()
    second.hold(2)
    clock.advance(FENCE_LOOK)
    with pytest.raises(Fenced, match=r"epoch 2, ours is 1\) though we hold its journal: file locks do not hold here"):
        first.check()
    second.check()


def test_a_token_that_cannot_be_read_fences_nobody_and_is_spoken_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock(100.0)
    mine = FencingToken(tmp_path / "claim.json", JobStart("7", 0), clock)

    def look() -> list[str]:
        clock.advance(FENCE_LOOK)
        mine.check()
        return [record.getMessage().partition("claim.json ")[2] for record in caplog.records]

    mine.take()
    mine.hold(1)
    assert look() == []
    (tmp_path / "claim.json").rename(tmp_path / "kept")
    (tmp_path / "claim.json").mkdir()
    said = ["cannot be read (Is a directory), so nobody is fenced"]
    assert (look(), look()) == (said, said)
    (tmp_path / "claim.json").rmdir()
    said.append("cannot be read (No such file or directory), so nobody is fenced")
    assert look() == said
    (tmp_path / "kept").rename(tmp_path / "claim.json")
    assert look() == [*said, "can be read again"]


def test_the_token_is_looked_at_once_a_second(tmp_path: Path) -> None:
    clock = FakeClock(100.0)
    mine = FencingToken(tmp_path / "claim.json", JobStart("7", 0), clock)
    mine.check()
    token(tmp_path, "7", 1).take()
    clock.advance(FENCE_LOOK / 2)
    mine.check()
    clock.advance(FENCE_LOOK / 2)
    with pytest.raises(Fenced):
        mine.check()
