"""Processes of the job's earlier start still run, as on a node of which only slurmd died: they change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from coordinator_lab import Lab, job, until


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    one = Lab(tmp_path, job())
    yield one
    one.close()


def test_a_job_that_is_started_again_beside_its_own_zombies(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    # LS-13
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    old = {"coordinator": lab.coordinator()}
    for name in ("live-0", "live-1"):
        old[name] = lab.worker(name)
    lab.steady("tp1pp1dp2")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    lab.coordinator()
    try:
        # The old coordinator lets go of the journal, its workers are refused by their generation.
        again = lab.wait_event("begun_anew")
        assert again["reason"] == "job 7 was requeued: start 2"
        until(lambda: all(process.poll() is not None for process in old.values()), "the zombies have left")
        assert old["coordinator"].returncode == 3
        assert lab.events("run_ended") == []
        for name in ("live-0", "live-1"):
            lab.worker(name)
        status = lab.steady("tp1pp1dp2")
        assert (status["epoch"], status["generation"]) == (2, 1)
    finally:
        for process in old.values():
            process.kill()
            process.wait()
