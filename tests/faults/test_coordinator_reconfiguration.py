"""A real coordinator with fake workers over real sockets: reconfigurations, and what may go wrong in them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from coordinator_lab import PATIENCE, Lab, job, until

from liver_slurm.config.schema import JobConfig
from liver_slurm.protocol.messages import CancelRequest, CheckpointRequest, ResizeRequest, WorkerEnded


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Callable[[JobConfig], Lab]]:
    labs: list[Lab] = []

    def make(config: JobConfig) -> Lab:
        labs.append(Lab(tmp_path, config))
        return labs[-1]

    yield make
    for one in labs:
        one.close()


def start(lab: Lab, *workers: str) -> None:
    lab.coordinator()
    for name in workers:
        lab.worker(name)
    lab.steady("tp1pp1dp2")


def test_grows_shrinks_on_notice_and_finishes(lab: Callable[[JobConfig], Lab]) -> None:
    config = job(workers=2, steps=500)
    run = lab(replace(config, elastic=replace(config.elastic, settle=2.0)))  # both standbys join together
    start(run, "live-0", "live-1")
    run.worker("standby-a")
    run.worker("standby-b")
    grown = run.wait_event("reconfiguration_committed")
    assert (grown["from"], grown["to"]) == ("tp1pp1dp2", "tp1pp1dp4")
    assert set(grown["joiners"]) == {"standby-a", "standby-b"}
    assert grown["bytes_remote"] == 40
    assert grown["bytes_moved"] == 60
    assert 0 <= grown["pause_s"] < 2
    assert run.ask(CheckpointRequest()).ok
    run.wait_event("checkpoint_written")

    run.processes["standby-a"].send_signal(signal.SIGTERM)
    assert run.processes["standby-a"].wait(timeout=PATIENCE) == 0
    shrunk = run.wait_event("reconfiguration_committed", 2)
    assert shrunk["cause"] == "notice"
    assert shrunk["leavers"] == ["standby-a"]
    assert run.processes["coordinator"].wait(timeout=PATIENCE) == 0
    for name in ("live-0", "live-1", "standby-b"):
        assert run.processes[name].wait(timeout=PATIENCE) == 0
    assert [step for _, step in run.trace("live-0")] == list(range(500)), "every step once"
    assert not run.run_dir.address_file.exists()


def test_scheduled_resizes_happen_exactly_there(lab: Callable[[JobConfig], Lab]) -> None:
    run = lab(job(workers=2, steps=20))
    run.coordinator("--resize", "5:tp2pp1dp2", "--resize", "6:tp1pp2dp1", "--resize", "7:tp1pp1dp4")
    for name in ("live-0", "live-1", "standby-a", "standby-b"):
        run.worker(name)
    assert run.processes["coordinator"].wait(timeout=PATIENCE) == 0
    committed = run.events("reconfiguration_committed")
    assert [(event["cutover_step"], event["to"]) for event in committed] == [
        (5, "tp2pp1dp2"), (6, "tp1pp2dp1"), (7, "tp1pp1dp4"),
    ]  # fmt: skip
    assert [step for _, step in run.trace("live-0")] == list(range(20))


@pytest.mark.parametrize(("point", "reason"), [("prepare", "could not prepare"), ("streamed", "could not stream")])
def test_a_joiner_that_fails_aborts_and_the_next_try_succeeds(
    lab: Callable[[JobConfig], Lab], point: str, reason: str
) -> None:
    run = lab(job(workers=2))
    start(run, "live-0", "live-1")
    run.worker("standby-a", "--at", f"{point}=fail")
    aborted = run.wait_event("reconfiguration_aborted")
    assert reason in aborted["reason"]
    committed = run.wait_event("reconfiguration_committed")
    assert committed["generation"] > aborted["generation"]
    steps = [step for _, step in run.trace("live-0")]
    assert steps == list(range(len(steps)))


@pytest.mark.parametrize("point", ["prepare", "confirm", "streamed"])
def test_a_joiner_that_dies_before_the_commit_is_harmless(lab: Callable[[JobConfig], Lab], point: str) -> None:
    run = lab(job(workers=2, lost_after=1.0))
    start(run, "live-0", "live-1")
    run.worker("standby-a", "--at", f"{point}=die")
    aborted = run.wait_event("reconfiguration_aborted")
    assert "standby-a was lost" in aborted["reason"]
    before = run.steady("tp1pp1dp2")["step"]
    until(lambda: run.status()["step"] > before, "training goes on")


def test_a_worker_that_hangs_runs_into_the_time_out(lab: Callable[[JobConfig], Lab]) -> None:
    run = lab(job(workers=2, prepare_timeout=1.0))
    start(run, "live-0", "live-1")
    run.worker("standby-a", "--at", "prepare=hang")
    assert "standby-a" in run.wait_event("reconfiguration_aborted")["reason"]
    run.wait_event("reconfiguration_committed")


@pytest.mark.parametrize("deeds", [(), ("--at", "halt=hang")], ids=["half_of_the_state_is_lost", "nobody_is_left"])
def test_losing_a_live_worker_may_fail_the_run_with_a_way_on(
    deeds: tuple[str, ...], lab: Callable[[JobConfig], Lab]
) -> None:
    config = job(workers=2, lost_after=4.0, start_timeout=8.0)
    run = lab(replace(config, elastic=replace(config.elastic, layouts=("tp1pp1dp2",))))
    run.worker("live-0", *deeds)
    start(run, "live-1")
    run.kill("live-1")
    assert run.ask(WorkerEnded(worker="live-1", reason="killed by SIGKILL")).ok
    assert run.processes["coordinator"].wait(timeout=PATIENCE) == 1
    assert run.processes["live-0"].wait(timeout=PATIENCE) == 0
    assert "no others came within 8 s; there is no checkpoint" in run.events("run_ended")[0]["reason"]
    assert run.events("worker_lost")[0]["worker"] == "live-1"


def test_cancel_and_sigterm(lab: Callable[[JobConfig], Lab]) -> None:
    for how in ("request", "signal"):
        run = lab(job(workers=2))
        start(run, "live-0", "live-1")
        if how == "request":
            assert run.ask(CancelRequest()).ok
        else:
            run.processes["coordinator"].send_signal(signal.SIGTERM)
        assert run.processes["coordinator"].wait(timeout=PATIENCE) == 3
        assert run.processes["live-0"].wait(timeout=PATIENCE) == 0


def test_requests_are_judged(lab: Callable[[JobConfig], Lab]) -> None:
    run = lab(job(workers=2, steps=10_000))
    start(run, "live-0", "live-1")
    for wish, word in [
        (ResizeRequest(layout="tp3pp1dp1"), "does not divide"),
        (ResizeRequest(layout="tp2pp1dp2"), "4 workers are needed and 2 are there"),
        (ResizeRequest(layout="two"), "is not a layout"),
        (ResizeRequest(), "either a layout or"),
        (ResizeRequest(layout="tp1pp2dp1", at_step=10_000), "no step before the run's end"),
    ]:
        reply = run.ask(wish)
        assert not reply.ok
        assert word in reply.error
    assert run.ask(ResizeRequest(layout="tp2pp1dp1")).ok
    run.steady("tp2pp1dp1")
    assert run.ask(ResizeRequest(workers=1)).ok
    run.steady("tp1pp1dp1")
    run.worker("standby-a")
    run.wait_event("standby_ready")
    assert run.steady("tp1pp1dp1")["standbys"], "an explicit size stays"
