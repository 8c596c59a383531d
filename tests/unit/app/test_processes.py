"""What is told of a run whose processes are gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from liver_slurm.app.processes import Found, end, why_silent
from liver_slurm.config.load import load_job
from liver_slurm.observability.ledger.facts import read_facts
from liver_slurm.rundir.event_log import EventLog, read_events
from liver_slurm.rundir.events import Interrupted, RunEnded
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run, record_run
from liver_slurm.scheduler.slurm import connect, ownership

TINY = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"
GONE = Found(False, "job 4 ended FAILED")


def test_a_run_that_never_served_says_what_its_coordinator_said_last(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert why_silent(run_dir, GONE) == "it never said how it ended: job 4 ended FAILED"
    run_dir.logs.mkdir()
    log = run_dir.logs / "coordinator.log"
    log.write_text("2026-11-29 03:14:48,433 INFO fine\n")
    assert why_silent(run_dir, GONE) == "it never said how it ended: job 4 ended FAILED"
    log.write_text(
        "x" * 100_000 + "\n2026-11-29 03:14:48,433 ERROR the first\n2026-11-29 03:14:51,548 ERROR /c can be written by "
        "others (mode 1777)\n2026-11-29 03:14:52,000 INFO bye\n"
    )
    assert why_silent(run_dir, GONE) == (
        "it never said how it ended: job 4 ended FAILED; its coordinator's last error: /c can be written by others "
        "(mode 1777)"
    )


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run whose job was preempted and is in the queue again."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LIVER_SITE", "")
    monkeypatch.setattr(connect, "connect", lambda: None)
    run_dir = create_run(load_job(TINY, [f"job.run_root={tmp_path}"]))
    record_run(run_dir, "41")
    EventLog(run_dir.events).append(Interrupted(reason="preempted", step=100))
    return run_dir


def ends(monkeypatch: pytest.MonkeyPatch, left: list[str]) -> None:
    monkeypatch.setattr(ownership, "end_jobs_of_run", lambda *_: (["41"], left))


def test_a_run_that_is_cancelled_in_the_queue_has_an_end(waiting: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, [])
    assert end(waiting) == "ended job 41"
    assert end(waiting) == "ended job 41"
    (said,) = [event for event in read_events(waiting.events) if isinstance(event, RunEnded)]
    assert (said.outcome, said.reason) == ("cancelled", "cancelled on request")
    assert read_facts(waiting, said.time + 30 * 86400.0).until == said.time


def test_nobody_speaks_for_a_coordinator_that_may_be_there(waiting: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, ["41"])
    assert end(waiting) == "ended job 41; Slurm is still ending 41"
    assert not any(isinstance(event, RunEnded) for event in read_events(waiting.events))
