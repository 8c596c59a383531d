"""T15: from event logs to a table; what each window has gained, and why one is not seen, as by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from liver_slurm.app.collect import AWAY, collect
from liver_slurm.base.errors import BadInput
from liver_slurm.policy.offer import WINDOWS
from liver_slurm.rundir import events as ev
from liver_slurm.rundir.registry import RunInfo

BEGIN, STEP_S = 1000.0, 2.0
STEP = 100
"""Completed at the decision."""


def decided(run: str, number: int = 0, time: float = BEGIN, **changes: Any) -> ev.PolicyDecided:
    fields: dict[str, Any] = {
        "id": f"{run}:{number}", "jobs": ("7",), "action": "take", "propensity": 0.8, "step": STEP,
        "features_version": 1, "features": {"speedup": 0.5},
    }  # fmt: skip
    offer = ev.Offered(**{**fields, **changes})
    return ev.PolicyDecided(
        time=time, policy="explore", decision="change", to="tp1pp1dp4", chosen=4, until=None, reason="",
        layout="tp1pp1dp2", available=4, ready=2, leaving=0, step_seconds=STEP_S, steps_left=900, automatic=True,
        request=None, offer=offer,
    )  # fmt: skip


def window(run: str, number: int, gained: float, after: float = 0.0) -> ev.DecisionWindow:
    length = WINDOWS[number]
    return ev.DecisionWindow(
        time=BEGIN + length + after, offer=f"{run}:0", window_s=length, after_s=length + after, step=0, gained_s=gained,
        layout="",
    )  # fmt: skip


def tick(time: float) -> ev.Event:
    return ev.CapacityChanged(time=time, workers={})


def write(
    folder: Path, run: str, *events: ev.Event, resumed_from: str = "", steps: dict[int, float] | None = None
) -> str:
    """A run directory with this log; ``steps``: when each step of its metrics ended."""
    path = folder / run
    path.mkdir()
    lines = [msgspec.json.encode(ev.to_document(one)) for one in events]
    (path / "events.jsonl").write_bytes(b"\n".join([*lines, b""]))
    info = RunInfo(run_id=run, name=run, created=1.0, resumed_from=resumed_from and str(folder / resumed_from))
    (path / "run.json").write_bytes(msgspec.json.encode(info))
    metric = {
        "loss": 1.0, "grad_norm": 1.0, "lr": 0.1, "tokens": 8, "consumed_samples": 8, "generation": 0, "layout": "x",
        "start": 0.0,
    }  # fmt: skip
    made = [msgspec.json.encode({**metric, "step": step, "end": end}) for step, end in (steps or {}).items()]
    (path / "metrics.jsonl").write_bytes(b"\n".join([*made, b""]))
    return str(path)


REQUEST = ev.ReconfigurationStarted(
    time=BEGIN + 600.0, source="a", to="b", members=(), joiners=(), leavers=(), cause="request", reason="asked"
)
UNTOLD = "the end of the window was not told"


def ended(outcome: str, time: float, step: int) -> ev.RunEnded:
    return ev.RunEnded(time=time, outcome=outcome, step=step)


@pytest.mark.parametrize(
    ("later", "gains", "reason"),
    [
        ([window("r", 0, 5.0), window("r", 1, 50.0), window("r", 2, 500.0)], (5.0, 50.0, 500.0), ""),
        # All 900 steps that were left, of 2 s each, in 1,000 s.
        ([window("r", 0, 5.0), ended("finished", BEGIN + 1000.0, STEP + 900)], (5.0, 800.0, 800.0), ""),
        # 200 steps, and then time goes by in vain.
        ([window("r", 0, 5.0), ended("failed", BEGIN + 400.0, STEP + 200)], (5.0, 400.0 - 1800.0, 400.0 - 7200.0), ""),
        ([window("r", 0, 5.0), ended("cancelled", BEGIN + 400.0, 300)], (5.0, None, None), "cancelled"),
        ([window("r", 0, 5.0), ended("stopped", BEGIN + 2000.0, 300)], (5.0, None, None), UNTOLD),
        ([window("r", 0, 5.0), tick(BEGIN + 900.0)], (5.0, None, None), "the log ends"),
        # What was lost when the run began anew is gone from the metrics; its event is not.
        ([window("r", 0, 5.0), ev.BegunAnew(time=BEGIN + 400.0, step=10), window("r", 1, -900.0),
          window("r", 2, -100.0)], (5.0, -900.0, -100.0), ""),
        ([window("r", 0, 5.0), REQUEST, window("r", 1, 50.0), window("r", 2, 500.0)], (5.0, None, None),
         "a resize on request"),
        ([window("r", 0, 5.0), window("r", 1, 50.0, after=200.0), window("r", 2, 9.0)], (5.0, None, None), AWAY),
        ([window("r", 0, 5.0), window("r", 0, 9.0), tick(BEGIN + 301.0)], (5.0, None, None), "the log ends"),
    ],
    ids=["all", "finish", "failure", "cancel", "untold", "log ends", "begun anew", "request", "late", "told twice"],
)  # fmt: skip
def test_gains_and_reasons(tmp_path: Path, later: list[ev.Event], gains: tuple[float | None, ...], reason: str) -> None:
    job = ev.StandbyJobChanged(time=BEGIN - 9.0, job_id="7", state="running", partition="spot", workers=2)
    (row,) = collect([write(tmp_path, "r", job, decided("r"), *later)]).rows
    assert (row.gain_s, row.reason) == (gains, reason)
    assert (row.decision, row.run, row.action, row.propensity, row.partition) == ("r:0", "r", "take", 0.8, "spot")
    assert row.features["speedup"] == 0.5
    assert row.features["room"] is None, "a feature that the log has not is not known"


def test_a_failure_goes_on_in_the_run_that_was_resumed(tmp_path: Path) -> None:
    first = write(tmp_path, "a", decided("a"), window("a", 0, 5.0), ended("failed", BEGIN + 400.0, STEP + 200))
    steps = {STEP + 50 + number: BEGIN + 1000.0 + number for number in range(2000)}
    again = write(
        tmp_path, "b", decided("b", time=BEGIN + 1500.0), ended("finished", BEGIN + 4000.0, STEP + 2049),
        resumed_from="a", steps=steps,
    )  # fmt: skip
    alone, *_ = collect([first]).rows
    assert alone.gain_s[1:] == (400.0 - 1800.0, 400.0 - 7200.0)
    chained, second = collect([first, again]).rows
    assert chained.gain_s == (5.0, (50 + 800) * STEP_S - 1800.0, 2049 * STEP_S - 4000.0 + 0.0)
    assert (chained.run, second.run) == ("a", "a"), "decisions of a chain depend on each other"


def test_what_cannot_be_used_is_counted_and_said(tmp_path: Path) -> None:
    slow = msgspec.structs.replace(decided("r", 1), step_seconds=0.0)
    found = collect([write(tmp_path, "r", decided("r"), slow, decided("r", id="", propensity=None))])
    assert found.left_out == {"the duration of a step was not known": 1}
    assert [row.reason for row in found.rows] == ["the log ends", "not followed up"]
    with pytest.raises(BadInput, match=r"no decision on an offer is in 1 runs.*explore"):
        collect([write(tmp_path, "none", tick(BEGIN))])
    with pytest.raises(BadInput, match="not of partition q"):
        collect([str(tmp_path / "r")], partition="q")
    with pytest.raises(BadInput, match="features of versions 1 and 2"):
        collect([str(tmp_path / "r"), write(tmp_path, "new", decided("new", features_version=2))])
    with pytest.raises(BadInput, match="there is no run"):
        collect([str(tmp_path / "nowhere")])
