"""kill -9 of a real coordinator in each phase: the next one goes on from the journal, training never notices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from coordinator_lab import PATIENCE, Lab, job, until

from liver_slurm.protocol.messages import ResizeRequest


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    one = Lab(tmp_path, job(workers=2, prepare_timeout=30.0))
    yield one
    one.close()


def start(lab: Lab, *extra: str) -> None:
    lab.coordinator()
    lab.worker("live-0", *extra)
    lab.worker("live-1", *extra)
    lab.steady("tp1pp1dp2")


def restart(lab: Lab) -> None:
    lab.kill("coordinator")
    before = json.loads(lab.run_dir.address_file.read_text())["epoch"]
    lab.coordinator()
    until(lambda: lab.status().get("epoch") == before + 1, "a coordinator of the next epoch")


def in_phase(lab: Lab, phase: str) -> None:
    until(lambda: lab.status().get("phase") == phase, f"phase {phase}")


def goes_on(lab: Lab) -> None:
    before = lab.status()["step"]
    until(lambda: lab.status()["step"] > before + 5, "training goes on")
    for name in ("live-0", "live-1"):
        steps = [step for _, step in lab.trace(name)]
        assert steps == list(range(len(steps))), "every step once"


def test_steady(lab: Lab) -> None:
    start(lab)
    pids = [worker["pid"] for worker in lab.status()["workers"]]
    restart(lab)
    status = lab.steady("tp1pp1dp2")
    assert [worker["pid"] for worker in status["workers"]] == pids
    assert lab.events("recovered")
    goes_on(lab)
    assert lab.ask(ResizeRequest(layout="tp2pp1dp1")).ok
    assert lab.steady("tp2pp1dp1")["generation"] > status["generation"]


def test_in_prepare_the_attempt_is_aborted_and_made_anew(lab: Lab) -> None:
    start(lab)
    lab.worker("standby-a", "--at", "prepare=hang")
    in_phase(lab, "prepare")
    restart(lab)
    committed = lab.wait_event("reconfiguration_committed")
    assert committed["generation"] > lab.events("reconfiguration_started")[0]["generation"]
    goes_on(lab)


def test_in_stream_the_attempt_is_aborted_and_made_anew(lab: Lab) -> None:
    start(lab)
    lab.worker("standby-a", "--at", "streamed=hang")
    in_phase(lab, "stream")
    restart(lab)
    committed = lab.wait_event("reconfiguration_committed")
    assert committed["generation"] > lab.events("reconfiguration_started")[0]["generation"]
    goes_on(lab)


def test_after_the_commit_record_the_new_world_is_the_live_one(lab: Lab) -> None:
    # LS-8
    start(lab)
    lab.worker("standby-a", "--at", "commit=hang")  # the others enter, and the coordinator dies waiting for this one
    in_phase(lab, "cutover")
    restart(lab)
    status = lab.steady("tp1pp1dp3")
    assert status["generation"] == lab.wait_event("reconfiguration_started")["generation"]
    committed = lab.wait_event("reconfiguration_committed")
    assert (len(committed["members"]), committed["bytes_moved"]) == (3, 45)
    goes_on(lab)


def test_after_the_commit_record_before_anybody_has_entered(lab: Lab) -> None:
    hang = ("--at", "commit=hang")  # nobody hears the first word of the commit; the next coordinator says it
    start(lab, *hang)
    lab.worker("standby-a", *hang)
    in_phase(lab, "cutover")
    assert {worker["generation"] for worker in lab.status()["workers"]} == {0, -1}
    restart(lab)
    status = lab.steady("tp1pp1dp3")
    assert {worker["generation"] for worker in status["workers"]} == {1}
    assert len(lab.events("reconfiguration_committed")) == 1
    goes_on(lab)


def test_before_world_0(lab: Lab) -> None:
    lab.coordinator()
    lab.worker("live-0")
    until(lambda: lab.status().get("standbys"), "live-0 is registered")
    restart(lab)
    lab.worker("live-1")
    lab.steady("tp1pp1dp2")
    goes_on(lab)


def test_a_member_that_does_not_come_back_fails_the_run(tmp_path: Path) -> None:
    """Where nobody comes in its place, and one worker alone has no layout."""
    config = job(workers=2, lost_after=2.0, start_timeout=10.0)
    lab = Lab(tmp_path, replace(config, elastic=replace(config.elastic, layouts=("tp1pp1dp2",))))
    try:
        start(lab)
        lab.kill("coordinator")
        lab.kill("live-1")
        assert lab.coordinator().wait(timeout=PATIENCE) == 1
        reason = lab.events("run_ended")[0]["reason"]
        assert "live-1 of the live world was lost" in reason
        assert "1 workers that are left, and no others came within 10 s" in reason
        assert lab.processes["live-0"].wait(timeout=PATIENCE) == 0
        assert lab.coordinator().wait(timeout=60) == 1, "a run that is over stays over"
    finally:
        lab.close()


def test_a_second_coordinator_is_refused(lab: Lab) -> None:
    # LS-13
    start(lab)
    first = lab.processes["coordinator"]
    try:
        second = lab.coordinator()
        assert second.wait(timeout=PATIENCE) == 70
        assert "another coordinator" in (lab.run_dir.logs / "coordinator.log").read_text()
        assert lab.status()["epoch"] == 1
    finally:
        lab.processes["coordinator"] = first
