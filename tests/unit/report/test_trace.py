"""The trace for Perfetto."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from report_stories import grown_and_shrunk, report

from liver_slurm.report.trace import CHANGES, MOST_STEPS, RUN, WORKERS, make_trace


def records(changes: int = 1) -> list[dict[str, Any]]:
    found = json.loads(msgspec.json.encode(make_trace(report(grown_and_shrunk(changes)))))
    return list(found["traceEvents"])


def test_a_flow_leads_from_a_notice_to_the_commit() -> None:
    found = records()
    start, middle, end = [record for record in found if record["ph"] in "stf"]
    assert [one["ph"] for one in (start, middle, end)] == ["s", "t", "f"]
    assert start["id"] == middle["id"] == end["id"]
    assert start["ts"] < middle["ts"] < end["ts"]
    assert (start["pid"], end["pid"], end["tid"]) == (WORKERS, RUN, CHANGES)
    for one in (start, end):  # a flow's ends are bound to slices that are there at that time
        assert any(
            record["ph"] == "X"
            and (record["pid"], record["tid"]) == (one["pid"], one["tid"])
            and record["ts"] <= one["ts"] <= record["ts"] + record["dur"]
            for record in found
        )


def test_every_record_has_what_the_format_asks_for() -> None:
    for record in records():
        assert {"ph", "name", "pid"} <= record.keys()
        if record["ph"] != "M":
            assert record["ts"] >= 0.0
        if record["ph"] == "X":
            assert record["dur"] >= 0.0


def test_workers_have_tracks_and_sizes_are_counted() -> None:
    found = records()
    tracks = {one["args"]["name"] for one in found if one["name"] == "thread_name" and one["pid"] == WORKERS}
    assert tracks == {"live-0", "live-1", "standby-1-0"}
    sizes = [one["args"]["workers"] for one in found if one["ph"] == "C" and one["name"] == "workers in the world"]
    assert 3 in sizes
    assert len([one for one in found if one["name"].startswith("step ")]) <= MOST_STEPS
