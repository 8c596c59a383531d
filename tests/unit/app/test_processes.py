"""What is told of a run whose processes are gone."""

from __future__ import annotations

from pathlib import Path

from liver_slurm.app.processes import Found, why_silent
from liver_slurm.rundir.paths import RunDir

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
