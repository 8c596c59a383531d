"""Notices, the attempt and the last turns, as the event log tells them."""

from __future__ import annotations

import msgspec
from event_samples import committed

from liver_slurm.observability.history import KEPT, Happening, Preparing, RunHistory
from liver_slurm.rundir import events
from liver_slurm.rundir.events import Event, to_document


def history(*given: Event) -> RunHistory:
    """The history of a run with these events, one a second from second 1 on."""
    run = RunHistory()
    for second, event in enumerate(given, 1):
        run.add(to_document(msgspec.structs.replace(event, time=float(second))))
    return run


NOTICE = events.Notice(worker="standby-1-0", host="n3", kind="preemption", reason="job 1", deadline=60.0, in_world=True)
STARTED = events.ReconfigurationStarted(generation=1, source="tp1pp1dp2", to="tp1pp1dp3", reason="a standby is warm")


def test_a_notice_counts_until_its_worker_is_gone_or_stays_after_all() -> None:
    assert list(history(NOTICE).notices) == ["standby-1-0"]
    changed = events.NoticeChanged(worker="standby-1-0", kind="preemption", deadline=90.0)
    assert history(NOTICE, changed).notices["standby-1-0"].deadline == 90.0
    for end in (
        events.NoticeWithdrawn(worker="standby-1-0", host="n3", kind="preemption", reason=""),
        events.WorkerLeft(worker="standby-1-0"),
        events.WorkerLost(worker="standby-1-0"),
        events.Interrupted(step=3),
        events.RunEnded(outcome="finished"),
    ):
        assert history(NOTICE, end).notices == {}


def test_an_attempt_goes_through_its_phases() -> None:
    assert history(STARTED).preparing == Preparing(1, "tp1pp1dp2", "tp1pp1dp3", "a standby is warm", 1.0)
    prepared = (STARTED, events.ReconfigurationPrepared(prepare_s=1.0))
    streamed = (*prepared, events.ReconfigurationStreamed(stream_s=0.5))
    phases = [found.phase for given in (prepared, streamed) if (found := history(*given).preparing) is not None]
    assert phases == ["STREAM", "CUTOVER"]
    for end in (committed(), events.ReconfigurationAborted(), events.WorldLive(), events.RunEnded(outcome="failed")):
        assert history(*streamed, end).preparing is None
    assert history(events.ReconfigurationStreamed(stream_s=0.5)).preparing is None


def test_turns_are_told_with_their_reason_and_cost() -> None:
    run = history(
        events.CoordinatorStarted(epoch=1),
        committed(exposed_s=0.3),
        events.ReconfigurationAborted(source="tp1pp1dp3", to="tp1pp1dp4", reason="a standby was lost"),
        events.WorkerLost(worker="standby-1-0", reason="silent"),
        events.CoordinatorStarted(epoch=2),
        events.CheckpointWritten(step=20, seconds=1.0, stall_s=0.0, path="x"),
        events.RunEnded(outcome="failed", reason="no worker is left", step=20),
    )
    assert list(run.happenings) == [
        Happening(2.0, "tp1pp1dp2 → tp1pp1dp3", "a standby is warm", 10, 0.3),
        Happening(3.0, "tp1pp1dp3 → tp1pp1dp4", "aborted: a standby was lost", bad=True),
        Happening(4.0, "standby-1-0 lost", "silent", bad=True),
        Happening(5.0, "coordinator started again", "start 2"),
        Happening(7.0, "failed", "no worker is left", 20, bad=True),
    ]


def test_further_turns() -> None:
    run = history(
        events.BegunAnew(step=8, reason="all workers were lost"),
        events.Interrupted(step=9, reason="preempted"),
        events.HandedOver(step=10, reason="time limit"),
        events.LaunchRefused(reason="QOS"),
        events.StandbyFailed(job_id="7", partition="p", in_a_row=3, alone_s=30.0),
        events.CheckpointFailed(step=11, seconds=1.0, stall_s=0.5, error="disk full"),
        events.CheckpointRefused(path="step-8", error="a file is missing"),
        events.StrangersRefused(control=3, store=0),
        events.ResizeGivenUp(request=1, wanted="tp4pp1dp1", reason="too few"),
    )
    assert [(one.what, one.why) for one in run.happenings] == [
        ("started again from a checkpoint", "all workers were lost"),
        ("interrupted", "preempted"),
        ("handed over to the successor job", "time limit"),
        ("standby jobs refused", "QOS"),
        (
            "standby job 7 failed",
            "before a worker was ready, 3 in a row in p, the next is tried in 30 s; see its log",
        ),
        ("checkpoint failed", "disk full"),
        ("checkpoint refused", "step-8: a file is missing"),
        ("callers without the run's key refused", "3 at the control channel, 0 at the store, since its start"),
        ("resize to tp4pp1dp1 given up", "too few"),
    ]


def test_a_long_run_remembers_its_last_turns_only() -> None:
    run = history(*(committed(cutover_step=step) for step in range(KEPT + 5)))
    assert [one.step for one in run.happenings] == list(range(5, KEPT + 5))


def test_what_another_version_wrote_is_passed_over() -> None:
    run = RunHistory()
    run.add({"time": 1.0, "event": "something_new"})
    assert not run.happenings
