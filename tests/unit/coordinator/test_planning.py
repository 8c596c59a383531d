"""What a run does by itself: the first world, and what no policy decides."""

from __future__ import annotations

from dataclasses import replace

import pytest
from coordinator_lab import job
from coordinator_states import START, Run, settings

from liver_slurm.coordinator.core import planning
from liver_slurm.coordinator.core.step import recover
from liver_slurm.protocol import messages as m


def test_world_0_waits_for_all_guaranteed_workers() -> None:
    run = Run(workers=3)
    run.register("live-10")
    run.register("standby-a")
    run.register("live-2")
    assert run.state.world.attempt is None
    run.register("live-1")
    (_, prepare), *_ = run.sent(m.Prepare)
    assert prepare.members == ["live-1", "live-2", "live-10"]
    assert (prepare.source_generation, prepare.generation, prepare.store_port) == (-1, 0, 1)


def test_world_0_waits_until_all_are_warm() -> None:
    run = Run()
    run.register("live-0")
    run.register("live-1", warm=False)
    assert run.state.world.attempt is None
    run.say(m.Heartbeat(worker="live-1", generation=-1, step=0, step_seconds=0.0, warm=True))
    assert run.state.world.attempt is not None


def test_world_0_has_a_deadline() -> None:
    run = Run()
    run.register("live-0")
    for _ in range(1000):
        run.tick(1.0)
        if run.state.over:
            break
        run.say(m.Heartbeat(worker="live-0", generation=-1, step=0, step_seconds=0.0, warm=True))
    assert run.state.lifecycle.outcome == (1, "only 1 of 2 guaranteed workers were ready in time; see their logs")


def test_world_0_loads_a_checkpoint() -> None:
    run = Run(settings and recover([], settings(checkpoint="/c/step-7", start_step=7), START))
    run.register("live-0")
    run.register("live-1")
    assert {prepare.checkpoint for _, prepare in run.sent(m.Prepare)} == {"/c/step-7"}
    run.prepare_all()
    assert {commit.step for _, commit in run.sent(m.Commit)} == {7}


def test_a_world_that_can_only_break_is_saved() -> None:
    config = job()
    run = Run(config=replace(config, elastic=replace(config.elastic, layouts=("tp1pp1dp2",))))
    run.train("live-0", "live-1")
    run.say(m.Notice(worker="live-1", reason="SIGTERM", time=run.now))
    run.tick()
    assert run.state.world.attempt is None
    assert {proposal.purpose for _, proposal in run.sent(m.ProposeBoundary)} == {"checkpoint"}


def grown(run: Run) -> None:
    """Both standbys are members of the live world."""
    run.begin_to_grow()
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()


def wanted(run: Run, name: str, seconds: float = 60.0) -> None:
    run.say(m.Notice(worker=name, reason="SIGTERM", time=run.now, deadline=run.now + seconds))


def test_a_large_world_hears_all_notices_of_a_row_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MANY", 4)
    monkeypatch.setattr(planning, "QUIET", 0.1 / 4)
    grown(run)
    wanted(run, "standby-a")
    run.tick(0.09)
    wanted(run, "standby-b")
    run.tick(0.09)
    assert run.state.world.attempt is None
    run.tick(0.02)
    assert run.state.world.attempt is not None
    assert run.state.world.attempt.target.members == ("live-0", "live-1")
    assert not run.events("reconfiguration_aborted")


def test_nobody_waits_for_others_notices_for_long(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MANY", 4)
    monkeypatch.setattr(planning, "QUIET", 10.0)
    grown(run)
    wanted(run, "standby-a")
    run.tick(planning.LONGEST - 0.01)
    assert run.state.world.attempt is None
    run.tick(0.02)
    assert run.state.world.attempt is not None


def test_who_is_gone_soon_waits_for_no_other_notice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MANY", 4)
    grown(run)
    wanted(run, "standby-a", seconds=0.4)
    assert run.state.world.attempt is not None
