"""What a run remembers for its policy, and what its decisions on offers have gained."""

from __future__ import annotations

from dataclasses import replace

import pytest
from coordinator_lab import job
from coordinator_states import Run, settings

from liver_slurm.coordinator.core import history
from liver_slurm.coordinator.core.io import CapacitySeen, Launch, LaunchRefused, Release
from liver_slurm.coordinator.core.parts import REMEMBERED
from liver_slurm.coordinator.core.records import LifeBegan, OfferDecided
from liver_slurm.coordinator.core.step import recover
from liver_slurm.policy.offer import WINDOWS
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import CapacitySnapshot, Headroom, StandbyJob


def seen(run: Run, *jobs: str) -> None:
    found = tuple(StandbyJob(name, "running", ("n1",), partition="p") for name in jobs)
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, found)))


def test_spans_are_recovered(run: Run) -> None:
    begin = run.now
    seen(run, "7", "8", "9")
    for number in (7, 8, 9):
        run.register(f"standby-{number}-0", job_id=str(number))
    run.tick(10.0)
    run.say(m.Notice(worker="standby-7-0", reason="SIGTERM", time=run.now, deadline=run.now + 30))
    assert [(one.job_id, one.partition, one.ended, one.taken) for one in run.state.history.spans] == [
        ("7", "p", begin + 10.0, True),
        ("8", "p", None, False),
        ("9", "p", None, False),
    ]
    new = Run(recover(run.records, settings(epoch=2), run.now + 5.0))
    assert new.state.history.spans == run.state.history.spans, (
        "a restarted coordinator knows since when each has been there"
    )
    for name in ("live-0", "live-1"):
        new.register(name, 0)
    new.register("standby-8-0", job_id="8")
    seen(new, "8", "9")
    assert new.state.history.spans == run.state.history.spans, "9 has yet to register"
    seen(new, "8")
    assert [(one.job_id, one.ended, one.taken) for one in new.state.history.spans[1:]] == [
        ("8", None, False),
        ("9", new.now, True),
    ]


def test_what_goes_on_is_not_forgotten_however_much_there_is(run: Run) -> None:
    """One that was forgotten was noted once more, with each worker that came: hundreds of records for each."""
    jobs = [str(number) for number in range(100, 100 + REMEMBERED + 20)]
    for job_id in jobs:
        run.register(f"standby-{job_id}-0", job_id=job_id)
    run.tick(0.1)
    assert [record.job_id for record in run.journaled(LifeBegan)] == jobs
    seen(run, *jobs[:10])
    for job_id in jobs[10:]:
        run.say(m.Leaving(worker=f"standby-{job_id}-0", reason="scancel"))
    for number in range(900, 930):
        run.register(f"standby-{number}-0", job_id=str(number))
        run.tick(0.1)
    spans = run.state.history.spans
    assert [one.job_id for one in spans if one.ended is None] == [*jobs[:10], *map(str, range(900, 930))]
    assert len([one for one in spans if one.ended is not None]) <= REMEMBERED + 1


def test_ready_with_a_heartbeat(run: Run) -> None:
    run.register("standby-7-0", job_id="7", warm=False)
    run.say(m.Heartbeat(worker="standby-7-0", generation=-1, step=0, step_seconds=0.0, warm=True))
    warm_at = run.now
    run.tick(0.1)
    assert [(one.job_id, one.began) for one in run.state.history.spans] == [("7", warm_at)]


def test_a_released_job_was_not_taken(run: Run) -> None:
    pinned = m.ResizeRequest(workers=2)
    run.say(pinned)
    run.state = replace(run.state, settings=replace(run.state.settings, standby_workers=4))
    seen(run, "7")
    run.register("standby-7-0", job_id="7")
    for _ in range(8):
        run.now += 10.0
        for name in ("live-0", "live-1", "standby-7-0"):
            run.say(m.Heartbeat(worker=name, generation=-1, step=0, step_seconds=0.0, warm=True))
        seen(run, "7")
    assert run.events("standby_release")[0]["job_id"] == "7"
    (one,) = run.state.history.spans
    assert (one.ended is not None, one.taken) == (True, False)
    assert run.sent(m.Leave)[0][0] == "standby-7-0"


def test_measurements_are_recovered(run: Run) -> None:
    run.register("standby-a")
    run.register("standby-b")
    run.tick(0.3)
    run.tick(2.0)
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all()
    (one,) = run.state.history.measured
    assert (one.generation, one.added, one.prepare_s) == (1, 2, pytest.approx(2.0))
    assert one.exposed_s == pytest.approx(run.events("reconfiguration_committed")[0]["exposed_s"])
    again = recover(run.records, settings(epoch=2), run.now)
    assert (again.history.measured, again.history.steady_since) == ((one,), run.state.history.steady_since)


LIVE = ("live-0", "live-1")
TAKEN, LEFT = "10", "8"
"""Jobs that the lot of run ``r`` takes and leaves where the chance is a half."""


def explorer(policy: str = "explore") -> Run:
    made = job(lost_after=99_999.0)
    config = replace(made, standby=replace(made.standby, policy=policy, explore=0.5, partitions=("p",)))
    run = Run(config=config, standby_workers=4)
    run.train(*LIVE)
    beat(run, 10)
    return run


def beat(run: Run, step: int) -> None:
    for name in LIVE:
        beaten = m.Heartbeat(worker=name, generation=run.live.generation, step=step, step_seconds=2.0, warm=True)
        run.say(beaten)


def offer(run: Run, job_id: str) -> None:
    look(run, StandbyJob(job_id, "running", ("n1",), partition="p"))
    run.register(f"standby-{job_id}", job_id=job_id)
    run.tick(0.3)


def look(run: Run, *jobs: StandbyJob) -> None:
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, jobs, (Headroom(0, "p", 2 - len(jobs)),))))


def on_offers(run: Run) -> list[dict[str, object]]:
    return [event["offer"] for event in run.events("policy_decided") if "offer" in event]


def test_what_is_left_is_given_back_and_its_partition_rests() -> None:
    run = explorer()
    offer(run, LEFT)
    (said,) = on_offers(run)
    assert (said["id"], said["action"], said["propensity"], said["jobs"]) == ("r:0", "leave", 0.5, (LEFT,))
    assert [action.job_id for action in run.actions if isinstance(action, Release)] == [LEFT]
    run.say(m.Leaving(worker=f"standby-{LEFT}", reason="told to"))
    started = sum(isinstance(one, Launch) for one in run.actions)
    run.feed(LaunchRefused(run.now, "no"))
    run.now += 890.0
    look(run)
    assert sum(isinstance(one, Launch) for one in run.actions) == started, "nothing is started while it rests"
    assert history.left_alone(run.state.history, run.now) == {"p": run.state.history.offers[0].until}
    run.now += 20.0
    look(run)
    assert sum(isinstance(one, Launch) for one in run.actions) == started + 1


def test_what_is_taken_again_after_a_failure_is_no_new_decision() -> None:
    run = explorer()
    offer(run, TAKEN)
    assert [said["action"] for said in on_offers(run)] == ["take"]
    run.say(m.Prepared(worker=f"standby-{TAKEN}", generation=1, ok=False, error="no memory"))
    for _ in range(40):
        run.tick(5.0)
    assert len(run.events("reconfiguration_started")) == 2, "it was tried again"
    assert len(run.journaled(OfferDecided)) == 1
    assert [said["id"] for said in on_offers(run)] == ["r:0"]


def test_windows_are_told_once_each_by_whichever_coordinator_is_there() -> None:
    run = explorer()
    offer(run, LEFT)
    begun = run.now
    run.now = begun + 301.0
    beat(run, 140)
    run.tick()
    run.tick(1.0)
    (told,) = run.events("decision_window")
    assert (told["offer"], told["window_s"], told["after_s"]) == ("r:0", 300.0, 301.0)
    assert told["gained_s"] == 130 * 2.0 - 301.0

    after = Run(recover(run.records, settings(config=run.state.settings.config, epoch=2), begun + 1000.0))
    assert after.state.history.offers == run.state.history.offers
    after.tick()
    assert after.events("decision_window") == [], "none before the members are back"
    for name in LIVE:
        after.register(name, 0, steps=500)
    after.now = begun + WINDOWS[-1] + 10.0
    beat(after, 600)
    after.tick()
    assert [one["window_s"] for one in after.events("decision_window")] == [1800.0, 7200.0]
    assert history.next_window(after.state.history) == float("inf")
    again = recover([*run.records, *after.records], settings(epoch=3), after.now)
    assert again.history == after.state.history


def test_other_policies_tell_what_was_on_offer_and_are_not_followed_up() -> None:
    run = explorer("greedy")
    offer(run, LEFT)
    (said,) = on_offers(run)
    assert (said["id"], said["action"], said["propensity"]) == ("", "take", None)
    assert run.journaled(OfferDecided) == []


def test_a_decision_waits_for_the_duration_of_a_step() -> None:
    run = explorer()
    for name in LIVE:
        run.say(m.Heartbeat(worker=name, generation=0, step=10, step_seconds=0.0, warm=True))
    offer(run, TAKEN)
    assert on_offers(run)[-1]["id"] == ""
    assert run.journaled(OfferDecided) == []
    beat(run, 20)
    run.tick(16.0)
    assert len(run.journaled(OfferDecided)) == 1
