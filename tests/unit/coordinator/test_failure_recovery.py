"""The world after a broken one: who is taken for dead, from where state comes, and who goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from coordinator_lab import job, with_validation
from coordinator_states import Run, settings

from liver_slurm.config.schema import JobConfig
from liver_slurm.coordinator.core import failure_recovery, workers
from liver_slurm.coordinator.core.detection import PARKING, QUICK_STALL, SILENT, SILENT_BEATS, SLOW_STALL
from liver_slurm.coordinator.core.failure_recovery import RETURN, TRIES
from liver_slurm.coordinator.core.io import (
    Action,
    CheckpointFound,
    FindCheckpoint,
    FromPeer,
    HungUp,
    Release,
    RollBackMetrics,
)
from liver_slurm.coordinator.core.records import MembersLost
from liver_slurm.coordinator.core.state import RunPhase
from liver_slurm.coordinator.core.status import document
from liver_slurm.coordinator.core.step import recover
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
from liver_slurm.policy.setbacks import MOST, MOST_ALIKE
from liver_slurm.protocol import messages as m
from liver_slurm.reshard.snapshots import Kept

LIVE = ("live-0", "live-1", "live-2")


def plain(distributed: bool = False, **changes: Any) -> JobConfig:
    config = job(**changes)
    config = replace(config, train=replace(config.train, distributed_optimizer=distributed))
    return replace(config, elastic=replace(config.elastic, layouts=("tp1pp1dp1", "tp1pp1dp2", "tp1pp1dp3")))


def training(distributed: bool = False, **changes: Any) -> Run:
    """Three live workers train with data parallelism."""
    run = Run(config=with_validation(plain(distributed, **changes)), workers=3)
    run.train(*LIVE)
    assert str(run.live.layout) == "tp1pp1dp3"
    return run


def park(
    run: Run, name: str, step: int = 5, reached: Any = "nothing", error: str = "closed by peer", **held: Any
) -> list[Action]:
    generation = run.live.generation
    word = m.Parked(worker=name, generation=generation, step=step, reached=reached, error=error, **held)
    return run.say(word)


def hang_up(run: Run, name: str) -> list[Action]:
    return run.feed(HungUp(run.now, name.encode(), run.now - 0.4))


def beat(
    run: Run,
    *names: str,
    step: int = 5,
    validating: tuple[int, float] | None = None,
    since_step: float | None = None,
    computing: bool = False,
) -> None:
    for name in names:
        generation = run.live.generation
        run.say(
            m.Heartbeat(
                worker=name,
                generation=generation,
                step=step,
                step_seconds=0.2,
                warm=True,
                validating=validating,
                since_step=since_step,
                computing=computing,
            )
        )


def lost(run: Run) -> list[tuple[str, str]]:
    return [(event["worker"], event["detected_by"]) for event in run.events("worker_lost")]


def prepares(run: Run, actions: list[Action] | None = None) -> m.Prepare:
    return run.sent(m.Prepare, actions)[-1][1]  # type: ignore[no-any-return]


def go_on(run: Run) -> None:
    """All survivors do what is asked of them, until they train in the next world."""
    run.prepare_all()
    run.stream_all()
    run.enter_all()
    assert not run.state.damage.broken


# ---- who is dead ---------------------------------------------------------------------------------------------------


def test_a_closed_connection_and_a_failed_collective_are_a_death() -> None:
    run = training()
    hang_up(run, "live-1")
    run.tick(0.1)
    assert lost(run) == [], "one witness is none"
    actions = park(run, "live-0")
    assert [name for name, _ in run.sent(m.Halt, actions)] == ["live-1", "live-2"]
    run.tick(0.1)
    assert lost(run) == [("live-1", "hang-up")]
    assert run.events("worker_lost")[0]["detected_s"] == pytest.approx(0.6)
    assert run.journaled(MembersLost)[-1].members == ("live-1",)
    assert not run.sent(m.Prepare, run.actions[-3:]), "live-2 has yet to stand still"
    actions = park(run, "live-2")
    assert sorted(name for name, _ in run.sent(m.Prepare, actions)) == ["live-0", "live-2"]


def test_a_connection_that_comes_back_is_no_death() -> None:
    run = training()
    hang_up(run, "live-1")
    run.tick(0.1)
    beat(run, *LIVE)
    for _ in range(5):
        run.tick(0.1)
    park(run, "live-0")
    run.tick(0.1)
    assert lost(run) == []


def test_a_closed_connection_where_training_stands_is_a_death() -> None:
    """On cards no collective fails by itself: the others are asked, and say that no step comes."""
    run = training()
    beat(run, *LIVE, since_step=0.1)
    hang_up(run, "live-1")
    run.tick(0.1)
    assert [name for name, _ in run.sent(m.HeartbeatRequest)] == ["live-0", "live-2"]
    beat(run, "live-0", "live-2", since_step=0.5)
    run.tick(0.1)
    assert lost(run) == [], "less than three of its steps"
    run.tick(0.5)
    assert lost(run) == [], "what was said then is no word of now"
    beat(run, "live-0", "live-2", since_step=3 * 0.2 + 0.5)
    run.tick(0.1)
    assert lost(run) == [("live-1", "hang-up")]


def test_one_that_completes_steps_contradicts_another_that_does_not() -> None:
    run = training()
    beat(run, *LIVE, since_step=0.1)
    hang_up(run, "live-1")
    for tenths in range(30):
        beat(run, "live-0", since_step=0.1 * tenths)
        beat(run, "live-2", since_step=0.1)
        run.tick(0.1)
    assert lost(run) == []


def test_heartbeats_from_before_a_connection_was_closed_are_no_witness() -> None:
    """Heartbeats may be seconds apart: training may have gone on since the last one."""
    run = training()
    beat(run, *LIVE, since_step=2.0)
    hang_up(run, "live-1")
    for _ in range(int(QUICK_STALL / 0.1) + 2):
        run.tick(0.1)
    assert lost(run) == []


def test_where_steps_were_not_due_standing_still_is_no_witness() -> None:
    run = training()
    beat(run, *LIVE, since_step=0.1)
    run.feed(FromPeer(run.now, b"client", m.CheckpointRequest()))
    held = run.state.barriers.checkpoint
    assert held is not None
    beat(run, *LIVE, step=held.step, since_step=0.1)
    run.tick(0.1)
    hang_up(run, "live-1")
    for tenths in range(20):
        beat(run, "live-0", "live-2", step=held.step, since_step=0.1 * tenths)
        run.tick(0.1)
    assert lost(run) == []


def test_a_closed_connection_without_a_witness_waits_for_silence() -> None:
    run = training()
    beat(run, *LIVE)
    run.tick(0.1)
    hang_up(run, "live-1")
    began = run.now
    while not lost(run):
        run.tick(0.1)
    assert lost(run) == [("live-1", "hang-up")]
    assert run.now - began == pytest.approx(
        max(SILENT, SILENT_BEATS * run.state.settings.config.job.heartbeat), abs=0.3
    )


def test_training_that_goes_on_contradicts_a_closed_connection() -> None:
    run = training()
    hang_up(run, "live-1")
    for step in range(40):
        beat(run, "live-0", "live-2", step=step)
        run.tick(0.1)
    assert lost(run) == []


def test_a_validation_that_goes_on_contradicts_a_closed_connection() -> None:
    run = training()
    hang_up(run, "live-1")
    for done in range(25):
        beat(run, "live-0", "live-2", validating=(16 * done, 5.0))
        run.tick(0.1)
    assert lost(run) == []
    while not lost(run):
        beat(run, "live-0", "live-2", validating=(16 * 24, 5.0))
        run.tick(0.1)
    assert lost(run) == [("live-1", "hang-up")]


def test_a_stopped_worker_is_found_by_those_that_are_well() -> None:
    run = training(lost_after=50.0)
    beat(run, *LIVE)
    while not run.sent(m.Halt):
        run.tick(0.1)
        beat(run, "live-0", "live-2")
    assert run.now - run.state.membership.workers["live-1"].seen > max(SILENT, SLOW_STALL)
    assert lost(run) == [], "who is well leaves its collectives and says so"
    park(run, "live-0")
    park(run, "live-2")
    broken = run.state.damage.since
    while not lost(run):
        run.tick(0.1)
        beat(run, "live-0", "live-2")
    assert lost(run) == [("live-1", "silence")]
    assert run.now == pytest.approx(broken + PARKING, abs=0.3)
    assert run.state.phase is ReconfigurationPhase.PREPARE


def test_in_a_large_run_nobody_is_silent_between_two_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "BEATS_A_SECOND", 0.5)
    run = training(lost_after=60.0)
    beat(run, *LIVE)
    every = run.state.membership.beat_seconds(run.state.settings.config.job)
    assert every == 6.0, "three workers, one beat in two seconds"
    park(run, "live-0")
    park(run, "live-2")
    run.tick(PARKING + 1.0)
    assert run.now < run.state.membership.workers["live-1"].seen + every
    assert lost(run) == [], "its next heartbeat is not due"
    while not lost(run):
        run.tick(1.0)
    assert lost(run) == [("live-1", "silence")]
    assert run.now - run.state.membership.workers["live-0"].seen == pytest.approx(SILENT_BEATS * every, abs=2.0)


def growing(run: Run, step: int) -> None:
    """A standby joins; training stands at the cutover."""
    run.register("standby-a")
    run.tick(0.3)
    run.prepare_all()
    run.agree()
    held = run.state.barriers.cutover
    assert held is not None
    beat(run, *run.live.members, step=held.step + step)


def test_a_member_that_does_not_enter_a_committed_world_is_lost_to_it() -> None:
    """Its training thread hangs; its control thread does not."""
    run = Run(config=plain(lost_after=50.0, prepare_timeout=20.0), workers=2)
    run.train(*LIVE[:2])
    growing(run, 0)
    run.stream_all()
    for name in LIVE[:2]:
        run.say(m.WorldEntered(worker=name, generation=1, step=run.live.step, time=run.now))
    begun = run.now
    while run.now < begun + 30 and not lost(run):
        run.tick(1.0)
        beat(run, *LIVE[:2], step=run.live.step)
        run.say(
            m.Heartbeat(worker="standby-a", generation=-1, step=0, step_seconds=0.0, warm=True, targets={1: "voted"})
        )
    assert lost(run) == [("standby-a", "stuck")]
    for name in LIVE[:2]:
        park(run, name, run.live.step)
    assert sorted(prepares(run).members) == list(LIVE[:2])
    go_on(run)


@pytest.mark.parametrize("stands", [True, False])
def test_training_stands_for_a_silent_joiner_for_seconds_only(stands: bool) -> None:
    """It is stopped, or its node hangs; nobody's collective fails of it."""
    run = Run(config=plain(lost_after=50.0), workers=2)
    run.train(*LIVE[:2])
    growing(run, 0 if stands else -1)
    begun = run.now
    while run.now < begun + 2 * SLOW_STALL and not lost(run):
        run.tick(0.1)
        beat(run, *LIVE[:2], step=run.state.step)
    if not stands:
        assert lost(run) == []
        return
    assert lost(run) == [("standby-a", "silence")]
    assert run.now - begun == pytest.approx(SLOW_STALL, abs=0.3)
    assert "training stands at step" in run.events("reconfiguration_aborted")[0]["reason"]
    assert [name for name, _ in run.sent(m.Abort)][:2] == ["live-0", "live-1"]


def test_a_member_that_never_leaves_its_collectives_is_given_up() -> None:
    run = training(lost_after=20.0)
    beat(run, *LIVE)
    hang_up(run, "live-1")
    park(run, "live-0")
    run.tick(0.1)
    assert lost(run) == [("live-1", "hang-up")]
    broken = run.state.damage.since
    while len(lost(run)) < 2:
        run.tick(0.1)
        beat(run, "live-0", "live-2")
    assert lost(run)[1] == ("live-2", "stuck")
    assert run.now == pytest.approx(broken + 20.0, abs=0.3)
    assert prepares(run).members == ["live-0"]


def test_a_slow_worker_is_not_a_dead_one() -> None:
    run = training()
    for _ in range(1000):
        beat(run, *LIVE)
        run.tick(0.1)
    assert lost(run) == []
    assert not run.sent(m.Halt)


def halted_after(run: Run, others: bool, most: float = 300.0) -> float:
    """Seconds until a world that completes no step is told to leave its collectives; -1: it is not.

    Args:
        others: whether ``live-1`` computes, as the others do.
    """
    begun, told = run.now, len(run.sent(m.Halt))
    while run.now < begun + most:
        run.tick(0.5)
        beat(run, "live-0", "live-2", step=run.state.step, computing=True)
        beat(run, "live-1", step=run.state.step, computing=others)
        if len(run.sent(m.Halt)) > told:
            return run.now - begun
    return -1.0


def test_a_step_that_hangs_ends_the_world_and_who_stays_is_lost() -> None:
    # LS-32
    run = training(lost_after=20.0)
    assert halted_after(run, True) == pytest.approx(20.0, abs=1.0)
    assert "all members compute, and none has completed a step" in run.sent(m.Halt)[0][1].reason
    for name in ("live-0", "live-2"):
        park(run, name)
    broken = run.now
    while not lost(run):
        run.tick(0.5)
        beat(run, *LIVE, computing=True)
    assert lost(run) == [("live-1", "stuck")], "its card hangs, and its control thread does not"
    assert run.now == pytest.approx(broken + 20.0, abs=1.0)
    assert prepares(run).members == ["live-0", "live-2"]
    go_on(run)


def test_a_step_that_only_takes_long_gets_more_time_each_time() -> None:
    run = training(lost_after=20.0)
    for longest in (20.0, 40.0, 80.0):
        assert halted_after(run, True) == pytest.approx(longest, abs=1.0)
        for name in LIVE:
            park(run, name, run.live.step)
        assert sorted(prepares(run).members) == list(LIVE), "nobody hangs"
        go_on(run)


def test_who_waits_for_samples_does_not_hang() -> None:
    run = training(lost_after=20.0)
    assert halted_after(run, False) == -1.0
    assert lost(run) == []


def test_a_world_without_a_death_is_made_again() -> None:
    run = training()
    for name in LIVE:
        park(run, name)
    order = prepares(run)
    assert (order.lost, order.standing, order.members) == ([], True, list(LIVE))
    assert order.layout == "tp1pp1dp3"
    go_on(run)
    assert run.live.step == 5


def test_members_are_told_again_to_leave_their_collectives() -> None:
    run = training()
    run.say(m.Failed(worker="live-1", generation=0, step=5, error="boom"))
    park(run, "live-0")
    run.tick(1.0)
    before = len(run.actions)
    beat(run, "live-0", "live-2")
    run.tick(0.1)
    beat(run, "live-0", "live-2")
    assert {name for name, _ in run.sent(m.Halt, run.actions[before:])} == {"live-2"}


# ---- the next world ------------------------------------------------------------------------------------------------


def restarted(run: Run) -> Run:
    """The coordinator dies, and another one recovers from the journal a second later."""
    return Run(recover(run.records, settings(config=plain(), epoch=2), run.now + 1))


def kill(run: Run, name: str, *survivors: str, **reports: tuple[int, str]) -> None:
    run.say(m.WorkerEnded(worker=name, reason="killed by SIGKILL"))
    for survivor in survivors:
        step, reached = reports.get(survivor.replace("-", "_"), (5, "nothing"))
        park(run, survivor, step, reached)


def test_survivors_go_on() -> None:
    # LS-34
    run = training()
    kill(run, "live-1", "live-0", "live-2")
    assert lost(run) == [("live-1", "process exit")]
    order = prepares(run)
    assert (order.layout, sorted(order.members), order.lost) == ("tp1pp1dp2", ["live-0", "live-2"], ["live-1"])
    assert (order.source_layout, order.source_members) == ("tp1pp1dp3", list(LIVE))
    assert order.standing
    run.prepare_all()
    assert run.state.phase is ReconfigurationPhase.STREAM
    assert [confirm.step for _, confirm in run.sent(m.ConfirmBoundary)] == [5, 5]
    run.stream_all()
    assert (run.live.step, run.live.generation) == (5, 1)
    run.enter_all()
    (planned,) = run.events("recovery_planned")
    assert (planned["state_from"], planned["step"], planned["lost"]) == ("survivors", 5, ["live-1"])
    (done,) = run.events("reconfiguration_committed")
    assert (done["cause"], done["cutover_step"], done["leavers"]) == ("loss", 5, ["live-1"])


def test_the_next_world_is_chosen_once_all_survivors_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    choose = failure_recovery.choose_world

    def counted(*given: Any) -> Any:
        chosen.append(len(run.state.damage.parked))
        return choose(*given)

    monkeypatch.setattr(failure_recovery, "choose_world", counted)
    run = training()
    hang_up(run, "live-2")
    park(run, "live-0")
    assert not chosen, "choosing takes its time, and thousands of survivors park by a message each"
    park(run, "live-1")
    run.tick(0.1)
    assert chosen == [2]


def test_a_standby_takes_the_place() -> None:
    run = training()
    run.register("standby-a")
    kill(run, "live-1", "live-0", "live-2")
    order = prepares(run)
    assert (order.layout, sorted(order.members)) == ("tp1pp1dp3", ["live-0", "live-2", "standby-a"])
    go_on(run)


def test_an_update_that_one_has_made_is_made_by_all() -> None:
    run = training()
    kill(run, "live-1", "live-0", "live-2", live_0=(5, "gradients"), live_2=(6, "nothing"))
    (planned,) = run.events("recovery_planned")
    assert (planned["step"], planned["redone"]) == (6, ["live-0"])
    assert prepares(run).scribe == "live-2"
    go_on(run)
    assert run.live.step == 6


def test_an_update_that_none_has_made_is_made_again() -> None:
    run = training()
    kill(run, "live-1", "live-0", "live-2", live_0=(5, "gradients"), live_2=(5, "nothing"))
    assert run.events("recovery_planned")[0]["step"] == 5


@pytest.mark.parametrize(
    ("distributed", "reports", "why"),
    [
        (True, {}, "the distributed optimizer's shards of live-1 have neither a replica nor a mirror at step 5"),
        (False, {"live_0": (5, "torn")}, "live-0 was interrupted inside an update"),
        (
            False,
            {"live_0": (5, "nothing"), "live_2": (6, "nothing")},
            "live-0 cannot come to step 6",
        ),
    ],
)
def test_state_that_nobody_holds_comes_from_a_checkpoint(distributed: bool, reports: Any, why: str) -> None:
    run = training(distributed)
    beat(run, *LIVE, step=5)
    kill(run, "live-1", "live-0", "live-2", **reports)
    assert not run.sent(m.Prepare, run.actions[-5:])
    (search,) = [action for action in run.actions if isinstance(action, FindCheckpoint)]
    actions = run.feed(CheckpointFound(run.now, "/c/step-3", 3))
    order = prepares(run, actions)
    assert (order.checkpoint, order.source_generation, order.lost) == ("/c/step-3", -1, [])
    assert why in run.events("recovery_planned")[0]["reason"]
    before = len(run.actions)
    run.prepare_all()
    done = run.actions[before:]
    rolled = next(place for place, action in enumerate(done) if isinstance(action, RollBackMetrics))
    assert done[rolled] == RollBackMetrics(3)
    assert all(not run.sent(m.Commit, done[:rolled]) for _ in "x")
    assert run.state.step == 3 < search.at_most
    beat(run, "live-0", "live-2", step=3)
    run.say(m.Heartbeat(worker="live-0", generation=0, step=5, step_seconds=0.1, warm=True))
    assert run.state.step == 3, "what was heard of the world before does not count"
    run.enter_all()
    assert run.events("reconfiguration_committed")[0]["cutover_step"] == 3


MIRRORED = {"live-0": {"live-2": (5, True)}, "live-2": {"live-1": (5, True)}, "live-1": {"live-0": (5, True)}}
"""What each member keeps: how far it is, and whether it can go one step further."""


def mirrored_kill(run: Run, name: str, mirrors: Any, step: int = 5, proven: int = -1) -> None:
    run.say(m.WorkerEnded(worker=name, reason="killed by SIGKILL"))
    for survivor in LIVE:
        if survivor != name:
            kept = mirrors.get(survivor, {})
            park(run, survivor, step, mirrors=kept, verified=dict.fromkeys(kept, proven))


@pytest.mark.parametrize(
    ("proven", "told"), [(4, "verified at step 4 and used at {step}"), (-1, "which no proof was made of yet")]
)
@pytest.mark.parametrize("step", [5, 6], ids=["no survivor has begun the update", "all survivors have made it"])
def test_state_that_only_the_dead_held_comes_from_its_mirror(step: int, proven: int, told: str) -> None:
    # LS-34
    run = training(distributed=True)
    mirrored_kill(run, "live-1", MIRRORED, step, proven)
    order = prepares(run)
    assert (order.source_generation, order.lost, order.mirrors) == (0, ["live-1"], {"live-1": "live-2"})
    assert (order.step, order.checkpoint) == (step, "")
    go_on(run)
    (planned,) = run.events("recovery_planned")
    assert (planned["state_from"], planned["mirrors"], planned["step"]) == ("mirrors", {"live-1": "live-2"}, step)
    assert planned["verified"] == {"live-1": proven}
    assert f"live-2 mirrors live-1, {told.format(step=step)}; " in planned["reason"]
    assert run.live.step == step


@pytest.mark.parametrize(
    "kept",
    [{}, {"live-1": (-1, True)}, {"live-1": (4, False)}, {"live-1": (3, True)}, {"live-0": (5, True)}],
    ids=["none", "not whole", "behind", "further behind", "of another"],
)
def test_a_mirror_that_is_not_current_is_of_no_use(kept: Any) -> None:
    run = training(distributed=True)
    mirrored_kill(run, "live-1", {"live-2": kept})
    assert not run.sent(m.Prepare, run.actions[-3:])
    assert any(isinstance(action, FindCheckpoint) for action in run.actions)


def test_a_mirror_dies_with_its_keeper() -> None:
    run = training(distributed=True)
    run.say(m.WorkerEnded(worker="live-2", reason="killed by SIGKILL"))
    run.say(m.WorkerEnded(worker="live-1", reason="killed by SIGKILL"))
    park(run, "live-0", mirrors=MIRRORED["live-0"])
    assert any(isinstance(action, FindCheckpoint) for action in run.actions)
    run.feed(CheckpointFound(run.now, "/c/step-3", 3))
    reason = run.events("recovery_planned")[0]["reason"]
    assert "shards of live-1 have neither a replica nor a mirror at step 5" in reason


@pytest.mark.parametrize("reached", ["nothing", "torn"])
def test_all_go_back_to_the_step_that_mirrors_were_refreshed_at(reached: Any) -> None:
    # LS-1, LS-34
    run = training(distributed=True)
    beat(run, *LIVE, step=9)
    run.say(m.WorkerEnded(worker="live-1", reason="killed by SIGKILL"))
    park(run, "live-0", 9, reached, own=[6], kept=[Kept(("live-2",), (3, 6))])
    park(run, "live-2", 9, own=[6], kept=[Kept(("live-1",), (3, 6))])
    order = prepares(run)
    assert (order.source_generation, order.lost, order.mirrors) == (0, ["live-1"], {"live-1": "live-2"})
    assert (order.step, order.back, order.checkpoint, order.scribe) == (6, True, "", "live-0")
    before = len(run.actions)
    go_on(run)
    done = run.actions[before:]
    rolled = next(place for place, action in enumerate(done) if isinstance(action, RollBackMetrics))
    assert done[rolled] == RollBackMetrics(6)
    assert not run.sent(m.Commit, done[:rolled]), "metrics go back before anybody adds to them"
    (planned,) = run.events("recovery_planned")
    assert (planned["state_from"], planned["step"]) == ("mirrors", 6)
    assert "all go back to step 6, of which live-2 keeps live-1" in planned["reason"]
    assert (run.live.step, run.state.step) == (6, 6)


def test_a_torn_update_goes_back_to_snapshots_though_nobody_is_lost() -> None:
    run = training(distributed=True)
    park(run, "live-0", 9, "torn", own=[6])
    park(run, "live-1", 9, own=[6])
    park(run, "live-2", 10, own=[6])
    order = prepares(run)
    assert (order.step, order.back, order.lost, order.mirrors) == (6, True, [], {})


def test_a_mirror_that_is_at_the_last_update_loses_nothing() -> None:
    """Mirrors were just refreshed, and nobody has begun the update behind that."""
    run = training(distributed=True)
    run.say(m.WorkerEnded(worker="live-1", reason="killed by SIGKILL"))
    park(run, "live-0", 6, "gradients", own=[3], kept=[Kept(("live-2",), (3, 6))])
    park(run, "live-2", 6, "gradients", own=[3], kept=[Kept(("live-1",), (3, 6))])
    assert prepares(run).step == 6


def test_where_replicas_are_left_no_mirror_is_asked() -> None:
    run = training()
    mirrored_kill(run, "live-1", MIRRORED)
    assert (prepares(run).lost, prepares(run).mirrors) == (["live-1"], {})


def test_mirrors_that_fail_give_way_to_a_checkpoint() -> None:
    run = training(distributed=True)
    mirrored_kill(run, "live-1", MIRRORED)
    for _ in range(TRIES // 2 + 1):
        attempt = run.state.world.attempt
        assert attempt is not None
        run.say(m.Prepared(worker="live-2", generation=attempt.target.generation, ok=False, error="digests differ"))
        for _ in range(900):
            beat(run, "live-0", "live-2")
            run.tick(0.1)
            if run.state.world.attempt is not None or run.state.damage.searching:
                break
    assert run.state.damage.searching
    run.feed(CheckpointFound(run.now, "/c/step-3", 3))
    assert "worlds made of mirrors were given up" in run.events("recovery_planned")[-1]["reason"]


def test_where_snapshots_fail_no_newer_checkpoint_is_left_out() -> None:
    run = training(distributed=True)
    beat(run, *LIVE, step=9)
    run.say(m.WorkerEnded(worker="live-1", reason="killed by SIGKILL"))
    park(run, "live-0", 9, own=[6], kept=[Kept(("live-2",), (3, 6))])
    park(run, "live-2", 9, own=[6], kept=[Kept(("live-1",), (3, 6))])
    for _ in range(TRIES // 2 + 1):
        attempt = run.state.world.attempt
        assert attempt is not None
        for name in attempt.involved:
            run.say(m.Prepared(worker=name, generation=attempt.target.generation, ok=True))
        run.say(m.Streamed(worker="live-2", generation=attempt.target.generation, ok=False, error="digests differ"))
        for _ in range(900):
            beat(run, "live-0", "live-2", step=9)
            run.tick(0.1)
            if run.state.world.attempt is not None or run.state.damage.searching:
                break
    (search,) = [action for action in run.actions if isinstance(action, FindCheckpoint)]
    assert search.at_most == 9, "not only up to the snapshots' step"


def test_without_a_checkpoint_the_run_ends_and_says_what_is_missing() -> None:
    run = training(distributed=True)
    kill(run, "live-1", "live-0", "live-2")
    run.feed(CheckpointFound(run.now, why_none="none of the checkpoints in /c can be used"))
    assert run.state.lifecycle.phase is RunPhase.FAILED
    missing = "shards of live-1 have neither a replica nor a mirror at step 5, and none of the checkpoints in /c"
    assert missing in run.state.reason


def test_before_the_first_checkpoint_the_run_begins_again_as_it_did() -> None:
    run = training(distributed=True)
    kill(run, "live-1", "live-0", "live-2")
    run.feed(CheckpointFound(run.now))
    (planned,) = run.events("recovery_planned")
    assert (planned["state_from"], planned["step"], planned["checkpoint"]) == ("start", 0, "")
    assert (prepares(run).source_generation, prepares(run).checkpoint, prepares(run).step) == (-1, "", 0)
    run.prepare_all()
    assert run.live.step == 0
    assert RollBackMetrics(0) in run.actions


# ---- too few are left ------------------------------------------------------------------------------------------------


def only_together(**changes: Any) -> Run:
    """Three workers train, and no fewer can."""
    config = plain(**changes)
    run = Run(config=replace(config, elastic=replace(config.elastic, layouts=("tp1pp1dp3",))), workers=3)
    run.train(*LIVE)
    return run


def end_place(run: Run, *names: str) -> None:
    for name in names:
        run.say(m.WorkerEnded(worker=name, reason="killed by SIGKILL", again=False))
        run.tick(0.1)


def test_survivors_stand_until_the_dead_ones_successor_comes() -> None:
    # LS-35
    run = only_together()
    kill(run, "live-1", "live-0", "live-2")
    assert "2 workers that are left; training stands until others come, for at most 900 s" in run.state.reason
    assert run.state.world.attempt is None
    run.register("live-1.2")
    assert sorted(prepares(run).members) == ["live-0", "live-1.2", "live-2"]
    assert (prepares(run).lost, prepares(run).step) == (["live-1"], 5)
    assert run.events("recovery_planned")[-1]["state_from"] == "survivors"
    go_on(run)


def test_where_nobody_is_left_the_newest_checkpoint_goes_on() -> None:
    run = training()
    for name in LIVE:
        run.say(m.WorkerEnded(worker=name, reason="killed by SIGKILL"))
    run.tick(0.1)
    assert "for the 0 workers that are left; training stands" in run.state.reason
    actions = run.register("live-2.2")
    assert FindCheckpoint(None) in actions, "as many steps as the metrics have"
    run.feed(CheckpointFound(run.now, "/c/step-3", 3))
    (planned,) = run.events("recovery_planned")
    assert (planned["state_from"], planned["step"], planned["members"]) == ("checkpoint", 3, ["live-2.2"])
    assert planned["reason"].startswith("no member of the live world is left; ")
    run.prepare_all()
    run.enter_all()
    assert (run.live.members, run.live.step) == (("live-2.2",), 3)
    for name in ("live-0.2", "live-1.2"):
        run.register(name)
    for _ in range(10):
        beat(run, "live-2.2", "live-0.2", "live-1.2", step=4)
        run.tick(1.0)
    assert len(prepares(run).members) == 3, "and it grows again"


def test_a_wait_for_others_ends() -> None:
    run = training()
    for name in LIVE:
        run.say(m.WorkerEnded(worker=name, reason="killed by SIGKILL"))
    run.tick(899.0)
    assert not run.state.over
    run.tick(2.0)
    assert run.state.lifecycle.phase is RunPhase.FAILED
    assert "0 workers that are left, and no others came within 900 s; there is no checkpoint" in run.state.reason


def test_nobody_waits_for_workers_that_cannot_come() -> None:
    run = training()
    end_place(run, *LIVE)
    assert run.state.lifecycle.phase is RunPhase.FAILED
    assert "no allowed layout for the 0 workers that are left; there is no checkpoint" in run.state.reason
    run = only_together()
    run.say(m.Notice(worker="live-1", reason="SIGTERM", time=run.now, deadline=run.now + 30.0))
    kill(run, "live-1", "live-0", "live-2")
    assert "no allowed layout for the 2 workers that are left; there is no checkpoint" in run.state.reason


def test_all_that_died_with_the_coordinator_may_come_back() -> None:
    new = restarted(training())
    new.tick(10.0)
    assert not new.state.over
    assert lost(new) == [(name, "absence") for name in LIVE]
    new.register("live-0.2")
    new.feed(CheckpointFound(new.now, "/c/step-3", 3))
    assert prepares(new).checkpoint == "/c/step-3"


def test_who_takes_a_place_has_a_dead_one_before_it() -> None:
    run = training()
    run.register("live-1.2")
    assert lost(run) == [("live-1", "its own word")]
    new = restarted(training())
    new.register("live-0", 0, 5)
    new.register("live-1.3")
    assert lost(new) == [("live-1", "absence")]


def train_on(run: Run, step: int) -> None:
    beat(run, *run.live.members, step=step)


def fail(run: Run, name: str, step: int, error: str) -> None:
    """A member raises in the step after ``step``, and all survivors leave their collectives."""
    generation = run.live.generation
    run.say(m.Failed(worker=name, generation=generation, step=step, error=error))
    for survivor in run.live.members:
        if survivor not in run.state.damage.lost:
            park(run, survivor, step)


def test_what_fails_in_each_world_at_the_same_step_ends_the_run() -> None:
    """However many standbys come: each of them would die of it."""
    run = training()
    for number in range(MOST_ALIKE):
        assert not run.state.over
        run.register(f"standby-{number}")
        train_on(run, 7)
        fail(run, run.live.members[0], 8, f"ValueError: line 4711 is bad, see 0x7f{number}")
        if number < MOST_ALIKE - 1:
            go_on(run)
    assert run.state.lifecycle.phase is RunPhase.FAILED
    assert f"step 9 has failed {MOST_ALIKE} times in a row at live-0, " in run.state.reason
    assert "with «ValueError: line 4711 is bad" in run.state.reason
    assert "there is no checkpoint to continue from" in run.state.reason
    assert "\n" not in run.state.reason


def test_a_failure_that_training_gets_past_is_forgotten() -> None:
    run = training()
    for number in range(2 * MOST):
        run.register(f"standby-{number}")
        fail(run, run.live.members[0], 8 + number, "ValueError: bad")
        go_on(run)


def test_deaths_from_outside_may_come_at_one_step() -> None:
    """A rack that loses power takes its workers one after the other; but not for ever."""
    run = training()
    for number in range(MOST):
        assert not run.state.over
        run.register(f"standby-{number}")
        victim = run.live.members[0]
        kill(run, victim, *(name for name in run.live.members if name != victim))
        if number < MOST - 1:
            go_on(run)
    assert run.state.lifecycle.phase is RunPhase.FAILED
    assert f"step 6 has failed {MOST} times in a row" in run.state.reason


def test_collectives_that_fail_at_one_step_end_the_run() -> None:
    run = training()
    for number in range(MOST):
        for name in LIVE:
            park(run, name, error=f"[127.0.0.1]:{number} closed")
        if number < MOST - 1:
            go_on(run)
    assert run.state.lifecycle.phase is RunPhase.FAILED
    assert f"step 6 has failed {MOST} times in a row, each time with «a collective failed at live-0" in run.state.reason


def test_what_would_come_in_every_world_ends_the_run_at_once() -> None:
    run = training()
    run.register("standby-a")
    error = "RunIsOver: the last 100 steps changed nothing"
    for name in LIVE:
        run.say(m.Failed(worker=name, generation=0, step=120, error=error, for_good=True))
    assert run.state.lifecycle.phase is RunPhase.FAILED
    assert run.state.reason == f"step 120 at live-0: {error}"
    assert not run.sent(m.Halt)
    assert lost(run) == []


def test_a_standby_decides_nothing_for_the_run() -> None:
    run = training()
    run.register("standby-a")
    run.say(m.Failed(worker="standby-a", generation=-1, step=0, error="x", for_good=True))
    assert not run.state.over


def with_a_standby() -> Run:
    """Three live workers and a standby train, and all have said so."""
    run = training()
    run.register("standby-7-0")
    kill(run, "live-1", "live-0", "live-2")
    go_on(run)
    assert "standby-7-0" in run.live.members
    return run


def test_a_process_with_a_members_name_stands_by() -> None:
    run = with_a_standby()
    new = restarted(run)
    for name in ("live-0", "live-2"):
        new.register(name, 1, 9)
    new.register("standby-7-0", pid=1)
    assert new.events("recovered")[0]["members"] == ["live-0", "live-2"]
    told = document(new.state)
    assert sorted(worker["worker"] for worker in told["workers"]) == ["live-0", "live-2"]
    assert [worker["worker"] for worker in told["standbys"]] == ["standby-7-0"]


def test_a_process_with_a_members_name_is_not_the_member() -> None:
    """A standby job that Slurm has started again while no coordinator looked."""
    run = with_a_standby()
    new = restarted(run)
    for name in ("live-0", "live-2"):
        new.register(name, 1, 9)
    actions = new.register("standby-7-0", pid=1)
    assert lost(new) == [("standby-7-0", "absence")]
    assert not new.sent(m.Commit, actions), "it has nothing to enter the world with"
    for name in ("live-0", "live-2"):
        park(new, name, step=9)
    assert sorted(prepares(new).members) == ["live-0", "live-2"]
    new.now += new.state.settings.config.job.lost_after + 1
    beat(new, "live-0", "live-2", step=9)
    new.say(m.Heartbeat(worker="standby-7-0", generation=-1, step=0, step_seconds=0.0, warm=True))
    new.tick(0.1)
    assert lost(new) == [("standby-7-0", "absence")], "the new process is well"
    new.say(m.Leaving(worker="standby-7-0", reason="SIGTERM"))
    assert not new.events("reconfiguration_aborted")
    go_on(new)


def test_a_member_that_has_not_heard_of_its_world_is_the_member() -> None:
    run = training()
    run.register("standby-7-0")
    kill(run, "live-1", "live-0", "live-2")
    run.prepare_all()
    run.stream_all()
    new = restarted(run)
    assert new.sent(m.Commit, new.register("standby-7-0"))
    assert lost(new) == []
    new.register("standby-7-0")
    assert lost(new) == [], "what it has said before it entered may come late"


def test_a_member_that_has_not_heard_of_its_world_may_be_another_process() -> None:
    run = training()
    run.register("standby-7-0")
    kill(run, "live-1", "live-0", "live-2")
    run.prepare_all()
    run.stream_all()
    new = restarted(run)
    assert not new.sent(m.Commit, new.register("standby-7-0", pid=1))
    assert lost(new) == [("standby-7-0", "absence")]


def test_another_dies_while_the_next_world_is_prepared() -> None:
    run = training()
    kill(run, "live-1", "live-0", "live-2")
    run.prepare_all()
    run.say(m.WorkerEnded(worker="live-2", reason="killed by SIGKILL"))
    assert [event["reason"] for event in run.events("reconfiguration_aborted")] == [
        "live-2 was lost: killed by SIGKILL"
    ]
    order = prepares(run)
    assert (order.layout, order.members, sorted(order.lost)) == ("tp1pp1dp1", ["live-0"], ["live-1", "live-2"])
    go_on(run)


@pytest.mark.parametrize("phase", ["prepare", "boundary", "stream", "cutover"])
def test_a_member_dies_during_a_reconfiguration(phase: str) -> None:
    run = training()
    run.say(m.ResizeRequest(workers=2))
    if phase != "prepare":
        run.prepare_all()
    if phase in ("stream", "cutover"):
        run.agree()
    if phase == "cutover":
        run.stream_all()
    generation = run.live.generation
    victim = run.live.members[0]
    survivors = [name for name in run.live.members if name != victim]
    kill(run, victim, *survivors)
    assert len(run.events("reconfiguration_aborted")) == (phase != "cutover")
    order = prepares(run)
    assert (order.source_generation, order.lost) == (generation, [victim])
    go_on(run)


def test_the_same_next_world_is_tried_a_few_times_only() -> None:
    run = training()
    kill(run, "live-1", "live-0", "live-2")
    for _ in range(TRIES):
        attempt = run.state.world.attempt
        assert attempt is not None
        run.say(m.Prepared(worker="live-0", generation=attempt.target.generation, ok=False, error="no memory"))
        for _ in range(900):
            beat(run, "live-0", "live-2")
            run.tick(0.1)
            if run.state.world.attempt is not None or run.state.over:
                break
    assert "5 worlds after it were given up" in run.state.reason


# ---- those that come back ------------------------------------------------------------------------------------------


def test_a_lost_worker_is_not_let_in_again() -> None:
    run = training()
    kill(run, "live-1", "live-0", "live-2")
    go_on(run)
    run.register("live-1", generation=0, steps=5)
    assert "lost out of generation 0" in run.sent(m.Refused)[-1][1].reason
    run.register("live-1", pid=77)
    assert "live-1" in run.state.membership, "a new process of that name is"


def with_a_lost_joiner(began: int) -> tuple[Run, Run]:
    """A standby stands still from its vote on a world on, and is lost out of that without having heard of the commit.

    Args:
        began: what it says of when its process began; 0: nothing, as one of an earlier version.

    Returns:
        the run with the coordinator that now goes on with it, and with the one that follows that.
    """
    run = training()
    run.register("standby-7-0", began=began)
    kill(run, "live-1", "live-0", "live-2")
    run.prepare_all()
    run.stream_all()
    assert "standby-7-0" in run.live.members
    new = restarted(run)
    for name in ("live-0", "live-2"):
        new.register(name, 1, 5)
        park(new, name)
    new.tick(RETURN + 1)
    assert lost(new) == [("standby-7-0", "absence")]
    new.tick(0.1)
    go_on(new)
    return new, Run(recover([*run.records, *new.records], settings(config=plain(), epoch=3), new.now + 1))


def test_a_lost_joiner_is_not_let_in_again() -> None:
    for run in with_a_lost_joiner(began=5):
        for _ in range(2):
            actions = run.register("standby-7-0", began=5)
            assert "lost out of generation 1" in run.sent(m.Refused, actions)[-1][1].reason
            assert Release("standby-7-0") in actions
        run.register("standby-7-0", began=6)
        assert "standby-7-0" in run.state.membership, "a new process of that name is, though it has the same number"


def test_a_job_is_not_ended_for_one_worker_while_another_of_it_trains() -> None:
    run, _ = with_a_lost_joiner(began=5)
    assert Release("7") in run.register("standby-7-0", began=5, job_id="7")
    world = run.state.world
    assert world.live is not None
    live = replace(world.live, members=("live-0", "standby-7-1"))
    run.state = replace(run.state, world=replace(world, live=live))
    refused = run.register("standby-7-0", began=5, job_id="7")
    assert run.sent(m.Refused, refused)
    assert Release("7") not in refused


def waits(run: Run, generation: int) -> list[Any]:
    """What a standby is told that waits for the verdict on a world."""
    beat = m.Heartbeat(
        worker="standby-7-0", generation=-1, step=0, step_seconds=0.0, warm=True, targets={generation: "voted"}
    )
    return [one for _, one in run.sent(m.Message, run.say(beat)) if not isinstance(one, m.Alive)]


def test_a_lost_joiner_whose_process_is_unknown_has_to_leave() -> None:
    run, _ = with_a_lost_joiner(began=0)
    run.register("standby-7-0")
    run.tick(0.3)
    attempt = run.state.world.attempt
    assert attempt is not None
    assert "standby-7-0" in attempt.joined, "it is taken for one that could join"
    told = waits(run, 1)
    assert not [one for one in told if isinstance(one, m.Commit)], "it would enter a world in which nobody is left"
    assert [one.reason for one in told if isinstance(one, m.Leave)] == ["it was lost out of generation 1"]
    assert "cannot join: it was lost" in run.events("reconfiguration_aborted")[-1]["reason"]
    for _ in range(2):
        assert [type(one) for one in waits(run, 1)] == [m.Leave], "until it has"
    run.tick(5.0)
    assert run.state.world.attempt is None
    run.say(m.Leaving(worker="standby-7-0", reason="told"))
    run.register("standby-7-0")
    run.tick(5.0)
    attempt = run.state.world.attempt
    assert attempt is not None
    assert not [one for one in waits(run, attempt.target.generation) if isinstance(one, m.Leave)], (
        "a new process is well"
    )


def test_a_coordinator_that_starts_again_knows_of_the_loss() -> None:
    run = training()
    kill(run, "live-1", "live-0")
    new = restarted(run)
    assert (new.state.damage.broken, new.state.damage.lost) == (True, ("live-1",))
    for name in ("live-0", "live-2"):
        new.register(name, 0, 5)
        park(new, name)
    assert new.state.phase is ReconfigurationPhase.PREPARE
    assert prepares(new).lost == ["live-1"]
    go_on(new)


def test_a_worker_that_died_with_the_coordinator() -> None:
    run = training()
    new = restarted(run)
    for name in ("live-0", "live-2"):
        new.register(name, 0, 5)
        park(new, name)
    new.tick(RETURN - 0.5)
    assert new.state.lifecycle.phase is RunPhase.RECOVERING
    new.tick(1.0)
    assert lost(new) == [("live-1", "absence")]
    new.tick(0.1)
    assert prepares(new).lost == ["live-1"]
    go_on(new)


def test_a_coordinator_that_starts_again_gives_survivors_their_time() -> None:
    run = training()
    run.tick(100.0)
    run.say(m.Failed(worker="live-1", generation=0, step=5, error="boom"))
    new = restarted(run)
    assert new.state.damage.since == new.now
    new.now += 4.0
    assert [name for name, _ in new.sent(m.Halt, new.register("live-0", 0, 5))] == ["live-0"], "it may not have heard"
    patience = new.state.settings.config.job.lost_after
    came = new.now
    new.register("live-2", 0, 5)
    while new.now < came + patience - 0.2:
        new.tick(0.1)
        beat(new, "live-0", "live-2")
        assert lost(new) == []
    park(new, "live-0")
    while not lost(new):
        new.tick(0.1)
        beat(new, "live-0", "live-2")
    assert lost(new) == [("live-2", "stuck")]


def test_a_state_that_has_begun_to_move_is_gone_on_with() -> None:
    """Who was told of it makes the update, and has said before how far it was."""
    run = training()
    kill(run, "live-1", "live-0", "live-2", live_0=(6, "nothing"), live_2=(5, "gradients"))
    assert prepares(run).step == 6
    run.prepare_all()
    run.say(m.WorkerEnded(worker="live-0", reason="killed by SIGKILL"))
    order = prepares(run)
    assert (order.members, order.step, order.scribe) == (["live-2"], 6, "live-2")
    new = restarted(run)
    new.register("live-2", 0, 6)
    park(new, "live-2", 5, "gradients")
    assert prepares(new).step == 6, "the next coordinator knows, too"
    park(new, "live-2", 6)
    go_on(new)


def test_who_never_came_back_is_lost_though_the_others_are_done() -> None:
    run = training(steps=6)
    train_on(run, 5)
    new = Run(recover(run.records, run.state.settings, run.now + 1))
    new.register("live-0", 0, 6)
    new.say(m.Finished(worker="live-0", step=6))
    new.register("live-2", 0, 6)
    park(new, "live-2", 6)
    park(new, "live-0", 6)
    patience = new.state.settings.config.job.lost_after
    while new.now < new.state.damage.since + patience + 0.5:
        new.tick(0.5)
        beat(new, "live-0", "live-2", step=6)
    assert lost(new) == [("live-1", "absence")]
    assert (prepares(new).lost, prepares(new).step) == (["live-1"], 6)


def test_many_losses_tell_the_others_once() -> None:
    run = training()
    for name in ("live-1", "live-2"):
        run.say(m.Failed(worker=name, generation=0, step=5, error="boom"))
    assert [name for name, _ in run.sent(m.Halt)] == ["live-0", "live-2"]


def test_a_job_is_not_ended_for_one_worker_while_another_of_it_waits() -> None:
    run, _ = with_a_lost_joiner(began=5)
    run.register("standby-7-1", began=6, job_id="7")
    refused = run.register("standby-7-0", began=5, job_id="7")
    assert run.sent(m.Refused, refused)
    assert Release("7") not in refused


def test_those_that_are_lost_together_stand_in_one_record() -> None:
    run = Run(config=job(workers=12), workers=12)
    names = [f"live-{number}" for number in range(12)]
    run.train(*names)
    gone = [name for name in run.live.members if name != "live-3"]
    for name in gone:
        run.feed(HungUp(run.now, name.encode(), run.now - 0.4))
    run.say(m.Parked(worker="live-3", generation=0, step=0, reached="nothing", error="closed"))
    run.tick(0.1)
    assert [record.members for record in run.journaled(MembersLost)] == [(), tuple(gone)]
    assert {event["worker"] for event in run.events("worker_lost")} == set(gone)
    assert "and 3 more were lost" in run.state.reason, "of many a few are named"
