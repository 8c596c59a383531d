"""Costs from what a run has measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from event_samples import committed
from ledger_stories import facts

from liver_slurm.base.errors import BadInput
from liver_slurm.observability.ledger.document import make_ledger
from liver_slurm.rundir import events as e
from liver_slurm.simulation.calibration import costs_of, queue_seconds
from liver_slurm.simulation.costs import Costs

BASE = Costs(step_s={"tp1pp1dp1": 9.0})
MEMBERS = ("live-0", "live-1")


def at(time: float, event: Any, generation: int = 0) -> Any:
    return type(event)(
        **{**{name: getattr(event, name) for name in event.__struct_fields__}, "time": time, "generation": generation}
    )


def run(changes: bool = True) -> Costs:
    """Twenty steps of 2 s; a standby job comes, and after a pause of 3 s twenty steps of 1 s."""
    rows = [{"step": number + 1, "start": 10.0 + 2 * number, "end": 11.9 + 2 * number} for number in range(20)]
    events = [
        at(4.0, e.CoordinatorStarted(phase="starting", job_started=2.0), -1),
        at(10.0, e.WorldLive(layout="tp1pp1dp2", members=MEMBERS, step=0)),
    ]
    if changes:
        rows += [
            {"step": 21 + number, "start": 53.0 + number, "end": 53.9 + number, "generation": 1} for number in range(20)
        ]
        grown = (*MEMBERS, "standby-7-0")
        events += [
            at(20.0, e.StandbyJobChanged(job_id="7", state="running", partition="p", workers=1)),
            at(26.0, e.WorkerRegistered(worker="standby-7-0", role="standby", host="n", job_id="7")),
            at(31.0, e.StandbyReady(worker="standby-7-0", host="n", device="cpu", job_id="7")),
            at(32.0, e.ReconfigurationStarted(source="tp1pp1dp2", to="tp1pp1dp3", cause="capacity", members=grown), 1),
            at(40.0, e.ReconfigurationPrepared(prepare_s=8.0, wire_s=0.4), 1),
            at(42.0, e.CheckpointWritten(step=15, seconds=4.0, stall_s=0.5, path="x")),
            at(53.2, committed(generation=1, cutover_step=20, prepare_s=8.0, pause_s=3.0, joiners=("standby-7-0",)), 1),
            at(53.2, e.WorldLive(layout="tp1pp1dp3", members=grown, step=20), 1),
            at(62.0, e.CheckpointWritten(step=25, seconds=6.0, stall_s=0.7, path="y"), 1),
        ]
    return costs_of(make_ledger(facts(events, rows)), "one", BASE)


def test_every_figure_that_the_run_has_measured() -> None:
    costs = run()
    assert costs.step_s == pytest.approx({"tp1pp1dp2": 2.0, "tp1pp1dp3": 1.0})
    expected = {
        "join_s": 11.0, "prepare_s": 8.0, "stream_s": 0.4, "exposed_pause_s": 3.0, "save_s": 5.0, "stall_s": 0.6,
        "save_every_s": 20.0,
    }  # fmt: skip
    assert {name: getattr(costs, name) for name in expected} == pytest.approx(expected, abs=0.01)
    assert "measured in one" in costs.note("join_s")
    assert costs.restart_s > 0.0


def test_what_the_run_has_not_done_stays() -> None:
    costs = run(changes=False)
    kept = ("join_s", "prepare_s", "stream_s", "exposed_pause_s", "exposed_overlap_s", "save_s", "recover_s")
    assert {name: getattr(costs, name) for name in kept} == {name: getattr(BASE, name) for name in kept}
    assert "assumed" in costs.note("prepare_s")
    assert costs.step_s == pytest.approx({"tp1pp1dp2": 2.0})


def test_a_run_that_has_hardly_trained_is_no_measure() -> None:
    short = facts(
        [at(10.0, e.WorldLive(layout="tp1pp1dp2", members=MEMBERS, step=0))], [{"step": 1, "start": 10.0, "end": 12.0}]
    )
    with pytest.raises(BadInput, match="--calibrate one: no layout has trained 5 steps in a row"):
        costs_of(make_ledger(replace(short)), "one", BASE)


def queued(*events: Any) -> float:
    rows = [{"step": number + 1, "start": 10.0 + number, "end": 10.9 + number} for number in range(9)]
    begun = at(10.0, e.WorldLive(layout="tp1pp1dp2", members=MEMBERS, step=0))
    return queue_seconds(make_ledger(facts([begun, *events], rows)))


def ordered(time: float, count: int) -> Any:
    return at(time, e.StandbyLaunch(count=count, unit=0, partition="p", reason="room"))


def seen(time: float, job: str, state: str) -> Any:
    return at(time, e.StandbyJobChanged(job_id=job, state=state, partition="p", workers=1))


def test_the_queue_is_from_the_order_until_a_job_runs() -> None:
    assert queued(
        ordered(20.0, 2), seen(21.0, "7", "pending"), seen(22.0, "8", "running"), seen(23.0, "7", "running"),
        ordered(30.0, 1), seen(34.0, "9", "running"), seen(40.0, "9", "ending"),
    ) == pytest.approx(3.0)  # fmt: skip


def test_what_never_ran_says_nothing_of_the_queue() -> None:
    refused = [ordered(20.0, 2), at(20.5, e.LaunchRefused(reason="limit"))]
    assert queued(*refused, seen(30.0, "7", "running")) == 0.0
    assert queued(ordered(20.0, 1), seen(30.0, "7", "pending"), seen(40.0, "7", "gone")) == 0.0
