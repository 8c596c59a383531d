"""The status document that files give when no coordinator answers."""

from __future__ import annotations

from typing import Any

from event_samples import committed

from liver_slurm.observability.summary import COLUMNS, reconfiguration_table, summarize
from liver_slurm.rundir.events import to_document

START = [
    {"event": "coordinator_started", "generation": -1},
    {"event": "world_live", "generation": 0, "layout": "tp1pp1dp2", "members": ["live-0", "live-1"], "step": 0},
]
JOINED = [
    {"event": "standby_ready", "generation": 0, "worker": "standby-7-0", "host": "n3", "job_id": "7"},
    {"event": "standby_ready", "generation": 0, "worker": "standby-8-0", "host": "n4", "job_id": "8"},
    {"event": "reconfiguration_started", "generation": 1, "to": "tp1pp1dp3", "reason": "a standby is warm"},
]
COMMITTED = to_document(committed(bytes_moved=4096, cutover_step=12))
LIVE = {
    "event": "world_live",
    "generation": 1,
    "layout": "tp1pp1dp3",
    "members": ["live-0", "live-1", "standby-7-0"],
    "step": 12,
}


def document(*events: dict[str, Any]) -> dict[str, Any]:
    return summarize(events).status(steps=100, last=None).document()


def test_before_anything_happened() -> None:
    found = document()
    assert (found["state"], found["layout"], found["generation"], found["workers"]) == ("pending", None, -1, [])
    assert document(START[0])["state"] == "starting"


def test_growing() -> None:
    during = document(*START, *JOINED)
    assert during["state"] == "training"
    assert during["target"] == {"generation": 1, "layout": "tp1pp1dp3"}
    assert [one["worker"] for one in during["standbys"]] == ["standby-7-0", "standby-8-0"]
    after = document(*START, *JOINED, COMMITTED, LIVE)
    assert (after["generation"], after["layout"], after["step"], after["target"]) == (1, "tp1pp1dp3", 12, None)
    assert after["workers"][2] == {"rank": 2, "worker": "standby-7-0"}
    assert [one["worker"] for one in after["standbys"]] == ["standby-8-0"]
    assert after["last_reconfiguration"]["pause_s"] == 0.25
    assert after["reason"] == "a standby is warm"


def test_a_standby_that_goes_and_an_abort() -> None:
    found = document(
        *START,
        *JOINED,
        {"event": "worker_lost", "generation": 0, "worker": "standby-7-0"},
        {"event": "reconfiguration_aborted", "generation": 1, "reason": "standby-7-0 is silent"},
        {"event": "something_new", "generation": 0},
    )
    assert found["target"] is None
    assert found["reason"] == "aborted: standby-7-0 is silent"
    assert [one["worker"] for one in found["standbys"]] == ["standby-8-0"]


def test_the_end_and_a_coordinator_that_starts_again() -> None:
    assert document(*START, START[0])["state"] == "training"
    ended = document(*START, {"event": "run_ended", "outcome": "failed", "reason": "live-1 is gone", "step": 9})
    assert (ended["state"], ended["reason"], ended["step"]) == ("failed", "live-1 is gone", 9)


def test_the_table_of_reconfigurations() -> None:
    (row,) = reconfiguration_table([COMMITTED])
    assert tuple(row) == COLUMNS
    assert (row["bytes"], row["from"], row["cutover_step"]) == (4096, "tp1pp1dp2", 12)
