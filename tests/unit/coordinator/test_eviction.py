"""Notices in the coordinator's state machine: two sources, one deadline, and what is taken back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from coordinator_states import Run

from liver_slurm.coordinator.core.io import CapacitySeen
from liver_slurm.coordinator.core.workers import Eviction, Worker
from liver_slurm.coordinator.core.worlds import ReconfigurationPhase
from liver_slurm.protocol import messages as m
from liver_slurm.scheduler.ports import DEFAULT_GRACE, CapacitySnapshot, EvictionNotice, StandbyJob


@pytest.fixture
def run() -> Run:
    """Two live workers and the standbys a and b in one world."""
    one = Run()
    one.train("live-0", "live-1")
    one.register("standby-a")
    one.register("standby-b")
    one.tick(0.3)
    reconfigure(one)
    return one


def reconfigure(run: Run) -> None:
    run.prepare_all()
    run.agree()
    run.stream_all()
    run.enter_all(after=0.1)
    assert run.state.phase is ReconfigurationPhase.STEADY or run.state.world.attempt is not None


def look(run: Run, notice: EvictionNotice | None = None, state: Any = "running", grace: float = 30.0) -> None:
    """Slurm is asked: what it says of standby-a's job; b's runs on."""
    jobs = (StandbyJob("standby-a", state, notice=notice, grace=grace), StandbyJob("standby-b", "running", grace=20.0))
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, jobs)))


def sigterm(run: Run, **details: Any) -> None:
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now, **details))


def eviction_of(run: Run, name: str = "standby-a") -> Eviction | None:
    return run.state.membership.workers[name].eviction


def target(run: Run) -> tuple[str, ...]:
    assert run.state.world.attempt is not None
    return tuple(sorted(run.state.world.attempt.target.members))


def beat(run: Run, *names: str) -> None:
    for name in names:
        run.say(m.Heartbeat(worker=name, generation=run.state.generation, step=0, step_seconds=0.1, warm=True))


def test_grace_of_the_job(run: Run) -> None:
    look(run, grace=5.0)
    sigterm(run)
    assert eviction_of(run) == Eviction("signal", "SIGTERM", run.now + 5.0, run.now)
    assert run.state.world.attempt is not None
    assert run.state.world.attempt.deadline == run.now + 5.0


def test_least_grace_of_all(run: Run) -> None:
    jobs = (StandbyJob("standby-b", "running", grace=20.0), StandbyJob("other", "running", grace=7.0))
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, jobs)))
    sigterm(run)
    assert eviction_of(run) == Eviction("signal", "SIGTERM", run.now + 7.0, run.now)


@pytest.mark.parametrize("seconds", [3.0, 600.0])
def test_the_record_replaces_the_estimate(run: Run, seconds: float) -> None:
    look(run, grace=20.0)
    sigterm(run)
    look(run, EvictionNotice("preemption", "wanted", run.now + seconds))
    found = eviction_of(run)
    assert found is not None
    assert (found.kind, found.deadline) == ("preemption", run.now + seconds)
    assert [event["deadline"] for event in run.events("notice_changed")] == [run.now + seconds]
    assert run.state.world.attempt is not None
    assert run.state.world.attempt.deadline == min(run.now + seconds, run.state.world.attempt.started + 300.0)


def test_a_notice_without_a_deadline(run: Run) -> None:
    look(run, EvictionNotice("node", "node n1 is drained"))
    assert run.events("notice")[0]["deadline"] is None
    assert run.state.world.attempt is not None, "no deadline, yet it leaves"
    sigterm(run)
    found = eviction_of(run)
    assert found is not None
    assert (found.kind, found.deadline) == ("signal", run.now + 30.0)


def test_a_later_signal(run: Run) -> None:
    look(run, grace=10.0)
    sigterm(run)
    first = eviction_of(run)
    run.now += 1.0
    sigterm(run)
    assert eviction_of(run) == first
    assert run.state.rejected["duplicate"] == 1
    sigterm(run, deadline=run.now + 2.0)
    assert eviction_of(run) == Eviction("signal", "SIGTERM", run.now + 2.0, run.now)
    run.now += 3.0
    sigterm(run)
    assert eviction_of(run) == Eviction("signal", "SIGTERM", run.now + 10.0, run.now)


def test_a_signal_that_nothing_explains(run: Run) -> None:
    look(run, grace=3.0)
    sigterm(run)
    for _ in range(4):
        run.tick(0.9)
        beat(run, "live-0", "live-1", "standby-b")
    assert run.events("reconfiguration_aborted")
    look(run, grace=3.0)
    found = eviction_of(run)
    assert found is not None
    assert found.deadline < run.now, "nothing was heard of it since"
    beat(run, "standby-a")
    run.tick(2.0)
    assert run.events("notice_changed")[-1]["deadline"] is None
    assert target(run) == ("live-0", "live-1", "standby-b")
    assert run.state.world.attempt is not None
    assert run.state.world.attempt.deadline > run.now + 100.0


def test_the_last_sigterm_leaves_kill_wait(run: Run) -> None:
    look(run, EvictionNotice("preemption", "wanted", run.now + 10.0), grace=5.0)
    run.now += 10.5
    sigterm(run)
    found = eviction_of(run)
    assert found is not None
    assert (found.kind, found.deadline) == ("signal", run.now + 5.0)


def test_a_notice_is_taken_back(run: Run) -> None:
    look(run, EvictionNotice("reservation", "node n1 is reserved: maintenance", run.now + 100.0))
    assert target(run) == ("live-0", "live-1", "standby-b")
    look(run)
    assert eviction_of(run) is None
    assert [event["kind"] for event in run.events("notice_withdrawn")] == ["reservation"]
    assert run.state.world.attempt is None, "nobody leaves, so the shrink is off"
    assert "standby-a stays" in run.events("reconfiguration_aborted")[-1]["reason"]
    assert not run.sent(m.Leave)


def test_others_still_need_the_shrink(run: Run) -> None:
    look(run, EvictionNotice("node", "node n1 is drained"))
    run.say(m.Notice(worker="standby-b", reason="SIGTERM", time=run.now))
    attempt = run.state.world.attempt
    assert attempt is not None
    assert target(run) == ("live-0", "live-1")
    look(run)
    assert eviction_of(run) is None
    assert run.state.world.attempt == attempt
    reconfigure(run)
    assert "standby-b" not in run.live.members


def test_a_dismissed_worker_is_not_asked_back(run: Run) -> None:
    look(run, EvictionNotice("node", "node n1 is drained"))
    reconfigure(run)
    assert [name for name, _ in run.sent(m.Leave)] == ["standby-a"]
    look(run)
    assert not run.events("notice_withdrawn")


def test_a_suspended_member_comes_back(run: Run) -> None:
    run.say(m.Notice(worker="standby-a", reason="SIGTSTP", time=run.now, deadline=run.now + 2, suspended=True))
    look(
        run, EvictionNotice("suspension", "the job is suspended"), "suspended"
    )  # Slurm says so before it stops anything
    assert run.state.world.attempt is not None
    assert run.state.world.attempt.deadline == run.now + 2
    reconfigure(run)
    assert "standby-a" not in run.live.members
    assert not run.sent(m.Leave), "it is not told to exit"
    for _ in range(20):  # stopped: silent for longer than job.lost_after
        run.tick(1.0)
        look(run, EvictionNotice("suspension", "the job is suspended"), "suspended")
        beat(run, "live-0", "live-1", "standby-b")
    assert "standby-a" in run.state.membership.workers
    assert run.state.world.attempt is None, "it does not count as ready"
    run.say(m.Notice(worker="standby-a", reason="SIGCONT", time=run.now, withdrawn=True))
    run.tick(0.3)
    assert "standby-a" in target(run)


def test_training_stands_while_a_member_is_suspended(run: Run) -> None:
    run.say(m.Notice(worker="standby-a", reason="SIGTSTP", time=run.now, deadline=run.now + 2, suspended=True))
    run.tick(2.1)
    aborted = len(run.events("reconfiguration_aborted"))
    for _ in range(20):
        look(run, EvictionNotice("suspension", "the job is suspended"), "suspended")
        run.tick(0.1)
    assert run.state.world.attempt is None
    assert len(run.events("reconfiguration_aborted")) == aborted, "nothing is begun that cannot succeed"
    assert run.state.reason == "training stands: standby-a suspended"
    look(run)
    assert eviction_of(run) is not None, "an old look proves nothing"
    run.say(m.Notice(worker="standby-a", reason="SIGCONT", time=run.now, withdrawn=True))
    assert eviction_of(run) is None
    assert run.state.phase is ReconfigurationPhase.STEADY


def test_a_sigtstp_without_suspension(run: Run) -> None:
    run.say(m.Notice(worker="standby-a", reason="SIGTSTP", time=run.now, deadline=run.now + 2, suspended=True))
    reconfigure(run)
    for _ in range(6):
        run.tick(1.0)
        beat(run, "live-0", "live-1", "standby-a", "standby-b")
        look(run)
    assert eviction_of(run) is None


def test_a_suspension_replaces_no_signal(run: Run) -> None:
    sigterm(run)
    run.say(m.Notice(worker="standby-a", reason="SIGTSTP", time=run.now, deadline=run.now + 2, suspended=True))
    found = eviction_of(run)
    assert found is not None
    assert found.kind == "signal"


def test_a_job_that_is_over(run: Run) -> None:
    look(run, grace=5.0)
    before = run.now
    run.now += 2.0
    beat(run, "live-0", "live-1", "standby-a", "standby-b")
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, (StandbyJob("standby-b", "running"),))))
    found = eviction_of(run)
    assert found is not None
    assert (found.kind, found.deadline) == ("over", before + 5.0), "it was not over when it was last seen"
    assert target(run) == ("live-0", "live-1", "standby-b")
    reconfigure(run)
    assert not run.state.over


def test_a_silent_worker_of_a_job_that_is_over(run: Run) -> None:
    look(run)
    run.now += 2.0
    beat(run, "live-0", "live-1", "standby-b")
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, (StandbyJob("standby-b", "running"),))))
    assert [event["worker"] for event in run.events("worker_lost")] == ["standby-a"]


def test_a_blind_look_proves_nothing(run: Run) -> None:
    # LS-20
    look(run)
    run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, (), blind="slurmctld does not answer")))
    assert eviction_of(run) is None


def test_all_standbys_at_once(run: Run) -> None:
    sigterm(run)
    run.say(m.Notice(worker="standby-b", reason="SIGTERM", time=run.now, deadline=run.now + 3.0))
    reconfigure(run)
    while run.state.world.attempt is not None:
        reconfigure(run)
    assert run.live.members == ("live-0", "live-1")
    assert sorted(name for name, _ in run.sent(m.Leave)) == ["standby-a", "standby-b"]


def test_the_deadline_that_counts() -> None:
    def worker(signalled: Eviction | None, announced: Eviction | None) -> Worker:
        where: dict[str, Any] = {"name": "a", "peer": b"a", "role": "standby", "host": "h", "pid": 1, "device": "cpu"}
        return Worker(**where, job_id="1", arrived=0, seen=0, signalled=signalled, announced=announced)

    signal = Eviction("signal", "SIGTERM", 10.0, 1.0)
    drained = Eviction("node", "drained", float("inf"), 0.0)
    preempted = Eviction("preemption", "wanted", 50.0, 2.0)
    assert worker(None, None).eviction is None
    assert worker(signal, None).eviction == signal
    assert worker(None, drained).eviction == drained
    assert worker(signal, drained).eviction == signal
    assert worker(signal, preempted).eviction == preempted


def test_one_worker_speaks_for_its_job() -> None:
    run = Run()
    run.train("live-0", "live-1")
    run.register("standby-a", job_id="7")
    run.register("standby-b", job_id="7")
    run.say(m.Notice(worker="standby-a", reason="SIGTERM", time=run.now))
    assert [event["worker"] for event in run.events("notice")] == ["standby-a", "standby-b"]


def test_a_time_limit_is_served_with_the_lead_that_changes_need(run: Run) -> None:
    now, end = run.now, run.now + 1000.0

    def at(seconds: float) -> Eviction | None:
        run.now = now + seconds
        beat(run, *run.live.members)
        jobs = (StandbyJob("standby-a", "running", ends_at=end), StandbyJob("standby-b", "running"))
        run.feed(CapacitySeen(run.now, CapacitySnapshot(run.now, jobs)))
        return eviction_of(run)

    (first,) = run.state.history.measured
    slow = replace(first, prepare_s=150.0, exposed_s=30.0)
    run.state = replace(run.state, history=replace(run.state.history, measured=(slow,)))
    run.whole_journal = False
    assert at(0.0) is None
    assert at(1000.0 - 2 * 180.0 - 1.0) is None
    known = at(1000.0 - 2 * 180.0)
    assert known is not None
    assert (known.kind, known.deadline) == ("time limit", end), "not in the last 30 s: the run would have ended"


def test_a_guaranteed_worker_that_outlives_its_notice_stops_nothing(run: Run) -> None:
    run.say(m.Notice(worker="live-1", reason="SIGUSR1", time=run.now, deadline=run.now + 3.0))
    for _ in range(8):
        run.tick(0.5)
        beat(run, *run.live.members)
    run.tick()
    assert run.events("notice_changed")[-1]["deadline"] is None
    run.register("standby-c")
    run.tick(61.0)
    assert "live-1" not in target(run), "its place is given to another one all the same"
    assert run.state.world.attempt is not None
    assert run.state.world.attempt.deadline > run.now + 100.0


@pytest.mark.parametrize("behind", [-40.0, 0.0, 40.0])
@pytest.mark.parametrize("deadline", [None, 30.0])
def test_a_notice_is_dated_by_the_clock_of_the_coordinator(run: Run, behind: float, deadline: float | None) -> None:
    run.register("standby-a")
    begun = run.now
    run.now += 2.0  # it comes by a heartbeat, as the message itself was lost
    said = m.Notice(
        worker="standby-a",
        reason="SIGTERM",
        time=begun - behind,
        deadline=begun - behind + deadline if deadline is not None else None,
        sent=run.now - behind,
    )
    run.say(m.Heartbeat(worker="standby-a", generation=-1, step=0, step_seconds=0.0, warm=True, notice=said))
    notice = run.state.membership.workers["standby-a"].signalled
    assert notice is not None
    grace = DEFAULT_GRACE if deadline is None else deadline
    assert (notice.at, notice.deadline) == (begun, begun + grace)
