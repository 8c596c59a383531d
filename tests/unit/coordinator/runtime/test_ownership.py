"""Who owns a run: the lease that the journal is, and the fencing token of a job's starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.clock import FakeClock
from liver_slurm.coordinator.core import recovery
from liver_slurm.coordinator.core.records import BegunAnew, Committed, Ended, EpochStarted, HandedOver
from liver_slurm.coordinator.runtime import ownership
from liver_slurm.coordinator.runtime.journal import Journal, JournalBusy, read_unless_held
from liver_slurm.coordinator.runtime.ownership import FENCE_LOOK, Fenced, FencingToken
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import RunInfo, record_successor, write_run_info
from liver_slurm.scheduler.ports import JobStart

# ---- the lease -----------------------------------------------------------------------------------------------------


def committed(*members: str) -> Committed:
    return Committed(
        generation=0, layout="tp1pp1dp1", members=members, source_layout="", source_members=(), source_generation=-1,
        step=0, cause="start", reason="", summary={},
    )  # fmt: skip


SEVEN, EIGHT = EpochStarted(epoch=1, job_id="7"), EpochStarted(epoch=2, job_id="8")


def test_who_holds_the_journal() -> None:
    assert ownership.holder([]) == ""
    assert ownership.holder([SEVEN, committed("live-0")]) == "7"
    assert ownership.holder([SEVEN, HandedOver(job_id="8")]) == "8"
    assert ownership.holder([SEVEN, HandedOver(job_id="8"), EIGHT, HandedOver(job_id="9")]) == "9"


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
    assert (recovery.why_anew(records, JobStart("8")) is not None) is anew_in


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
    journal, records = ownership.open_journal(path, "8", lambda job: False, clock, wait=True)
    assert clock.looks == 2
    assert journal is not None
    assert ownership.holder(records) == "8"
    journal.close()
    # Job 7's coordinator is started again, too late.
    assert ownership.open_journal(path, "7", lambda job: False, clock, wait=False)[0] is None


def test_a_successor_goes_on_when_the_job_before_is_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    write(path, SEVEN, committed("live-0"))
    asked: list[str] = []

    def is_over(job: str) -> bool:
        asked.append(job)
        return True

    journal, _ = ownership.open_journal(path, "8", is_over, FakeClock(), wait=True)
    assert journal is not None
    journal.close()
    assert asked == ["7"]


def test_a_coordinator_that_died_after_it_handed_over_leaves_the_run_to_the_successor(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    write_run_info(run_dir, RunInfo(run_id="r", name="n", created=0.0, job_id="7"))
    write(run_dir.journal, SEVEN, committed("live-8-0"), HandedOver(job_id="8"))
    held = Journal(run_dir.journal)
    with pytest.raises(JournalBusy):  # whoever holds it may be of our own job, about to let go: tried again
        ownership.acquire(run_dir, JobStart("7"), lambda job: False, FakeClock(), wait=False)
    record_successor(run_dir, "8")
    assert ownership.acquire(run_dir, JobStart("7"), lambda job: False, FakeClock(), wait=False) is None
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
