"""A run that Slurm starts again: what the journal says, which checkpoint is taken, and who is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from coordinator_lab import job
from coordinator_states import START, Run, settings

from liver_slurm.coordinator.core.io import Finish, Interrupted, Release
from liver_slurm.coordinator.core.parts import ReconfigurationPhase
from liver_slurm.coordinator.core.records import BegunAnew, Ended, EpochStarted, Record
from liver_slurm.coordinator.core.recovery import ended, recover, why_anew
from liver_slurm.coordinator.core.state import RunPhase
from liver_slurm.coordinator.runtime.journal import Journal
from liver_slurm.coordinator.runtime.restart import begin_anew, job_start
from liver_slurm.protocol import messages as m
from liver_slurm.rundir.checkpoints import begin_checkpoint, checkpoint_path, publish_checkpoint
from liver_slurm.rundir.metrics import MetricsWriter, StepMetrics, read_metrics
from liver_slurm.rundir.paths import RunDir
from liver_slurm.rundir.registry import create_run
from liver_slurm.scheduler.ports import JobStart

FIRST = EpochStarted(epoch=1, job_id="7", restarts=0)
ANEW = BegunAnew(checkpoint="/c/step-7", step=7, steps_lost=2, reason="job 7 was requeued")


@pytest.fixture
def run() -> Run:
    one = Run()
    one.train("live-0", "live-1")
    return one


@pytest.mark.parametrize(
    ("records", "start", "anew"),
    [
        ([], JobStart("7", 0), False),
        ([FIRST], JobStart("7", 0), False),
        ([FIRST], JobStart("7", 1), True),
        ([FIRST], JobStart("8", 0), False),
        ([FIRST], JobStart("", 0), False),
        ([FIRST, Ended(code=1, reason="lost")], JobStart("7", 1), True),
        ([FIRST, Ended(code=0, reason="done")], JobStart("7", 1), False),
        ([FIRST, Ended(code=3, reason="on request")], JobStart("7", 1), False),
        ([FIRST, Ended(code=1, reason="lost"), ANEW, EpochStarted(epoch=2, job_id="7", restarts=1)], JobStart("7", 1),
         False),
    ],
)  # fmt: skip
def test_only_a_job_that_was_started_again_begins_anew(records: list[Record], start: JobStart, anew: bool) -> None:
    assert (why_anew(records, start) is not None) is anew


def test_the_start_is_read_from_slurms_environment() -> None:
    assert job_start({}) == JobStart("", 0)
    assert job_start({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}) == JobStart("7", 2)


def test_an_outcome_before_the_new_beginning_is_none() -> None:
    assert ended([Ended(code=1, reason="lost"), ANEW]) is None
    assert ended([ANEW, Ended(code=0, reason="done")]) == Ended(code=0, reason="done")


def test_the_next_world_loads_the_checkpoint_and_has_a_generation_of_its_own(run: Run) -> None:
    state = recover([*run.records, ANEW], settings(epoch=2), START)
    assert (state.phase, state.world.live, state.generation) == (RunPhase.STARTING, None, -1)
    again = Run(state)
    again.register("live-0")
    again.register("live-1")
    assert {(order.generation, order.checkpoint) for _, order in again.sent(m.Prepare)} == {(1, "/c/step-7")}
    again.say(m.Prepared(worker="live-0", generation=1, ok=True))
    again.say(m.Prepared(worker="live-1", generation=1, ok=True))
    assert {(commit.generation, commit.step) for _, commit in again.sent(m.Commit)} == {(1, 7)}
    # A coordinator that is started again within the same start of the job goes on with that world.
    third = recover([*run.records, ANEW, *again.records], settings(epoch=3), START)
    assert (third.phase, third.generation, third.world.next_generation) == (RunPhase.RECOVERING, 1, 2)


def test_processes_of_the_lost_world_change_nothing(run: Run) -> None:
    again = Run(recover([*run.records, ANEW], settings(epoch=2, job_id="7", restarts=1), START))
    again.register("live-0", generation=0, steps=9, job_id="7", pid=1)
    again.register("live-1", job_id="7", restarts=0, pid=2)
    assert [name for name, _ in again.sent(m.Refused)] == ["live-0", "live-1"]
    assert again.state.membership.workers == {}
    again.say(m.Heartbeat(worker="live-0", generation=0, step=10, step_seconds=1.0, warm=True))
    again.say(m.Finished(worker="live-0", step=10))
    assert again.state.step == 7
    again.register("live-0", job_id="7", restarts=1, pid=3)
    again.register("live-1", job_id="7", restarts=1, pid=4)
    assert again.state.phase is ReconfigurationPhase.PREPARE


def test_standbys_of_the_lost_world_end_and_idle_ones_are_used_again(run: Run) -> None:
    again = Run(recover([*run.records, ANEW], settings(epoch=2), START))
    again.register("standby-a", generation=0, steps=9)
    again.register("standby-b")
    assert [action.job_id for action in again.actions if isinstance(action, Release)] == ["standby-a"]
    assert set(again.state.membership.workers) == {"standby-b"}


# ---- which checkpoint ----------------------------------------------------------------------------------------------


def with_metrics(folder: Path, last: int, checkpoints: list[int], resume: RunDir | None = None) -> RunDir:
    run_dir = create_run(job(run_root=str(folder)), resume)
    writer = MetricsWriter(run_dir.metrics)
    for step in range(1, last + 1):
        values: dict[str, Any] = {"loss": 1.0, "grad_norm": 1.0, "lr": 1.0, "tokens": 1, "consumed_samples": step}
        writer.append(StepMetrics(step=step, generation=0, layout="tp1pp1dp1", start=0.0, end=0.0, **values))
    for step in checkpoints:
        path = checkpoint_path(run_dir.checkpoints, step)
        begin_checkpoint(path)
        publish_checkpoint(path, {"step": step})
    return run_dir


@pytest.mark.parametrize(
    ("last", "checkpoints", "expected"),
    [(12, [5, 10], 10), (12, [], 0), (0, [], 0), (12, [10, 13], 10), (10, [10], 10)],
)
def test_the_newest_checkpoint_whose_steps_are_written_down(
    tmp_path: Path, last: int, checkpoints: list[int], expected: int
) -> None:
    # LS-17
    run_dir = with_metrics(tmp_path, last, checkpoints)
    journal = Journal(run_dir.journal)
    record = begin_anew(run_dir, journal, "because")
    assert (record.step, record.steps_lost, record.reason) == (expected, last - expected, "because")
    assert record.checkpoint == (str(run_dir.checkpoints / f"step-{expected:08d}") if expected else "")
    assert [line.step for line in read_metrics(run_dir.metrics)] == list(range(1, expected + 1))
    assert journal.read() == [record]


def test_a_resumed_run_without_a_checkpoint_of_its_own_begins_where_it_began(tmp_path: Path) -> None:
    first = with_metrics(tmp_path, 6, [5])
    second = with_metrics(tmp_path, 0, [], resume=first)
    record = begin_anew(second, Journal(second.journal), "because")
    assert (record.checkpoint, record.step, record.steps_lost) == (str(first.checkpoints / "step-00000005"), 5, 0)


# ---- how it is interrupted -----------------------------------------------------------------------------------------


def requeued(run: Run) -> None:
    run.feed(Interrupted(run.now, "job 7 was requeued", requeued=True))


def test_a_requeued_job_saves_and_leaves_without_an_outcome(run: Run) -> None:
    run.register("standby-a")
    requeued(run)
    held = run.state.barriers.checkpoint
    assert held is not None
    for name in ("live-0", "live-1"):
        run.say(m.BoundaryVote(worker=name, boundary=held.number, step=held.step, accepted=True, current_step=0))
    assert not run.sent(m.Leave)
    run.say(m.CheckpointWritten(worker="live-0", step=held.step, ok=True, path="p"))
    assert sorted(name for name, _ in run.sent(m.Leave)) == ["live-0", "live-1"]
    assert run.journaled(Ended) == []
    assert [event["reason"] for event in run.events("interrupted")] == ["job 7 was requeued"]
    run.say(m.Heartbeat(worker="standby-a", generation=-1, step=0, step_seconds=0.0, warm=True))
    assert not [name for name, _ in run.sent(m.Leave) if name == "standby-a"]
    for name in ("live-0", "live-1"):
        run.say(m.Leaving(worker=name, reason="told"))
    run.tick()
    assert run.actions[-1] == Finish(3, "job 7 was requeued", over=False)


def test_an_earlier_checkpoint_is_not_the_one_that_is_waited_for(run: Run) -> None:
    run.say(m.Heartbeat(worker="live-0", generation=0, step=9, step_seconds=0.1, warm=True))
    requeued(run)
    for ok in (True, False):
        run.say(m.CheckpointWritten(worker="live-0", step=5, ok=ok, path="p", error="no space"))
        assert run.state.phase is not RunPhase.INTERRUPTED
    run.say(m.CheckpointWritten(worker="live-0", step=9, ok=False, path="p", error="no space"))
    assert run.state.phase is RunPhase.INTERRUPTED


def test_workers_that_are_killed_meanwhile_are_no_failure(run: Run) -> None:
    requeued(run)
    run.say(m.Failed(worker="live-1", generation=0, step=3, error="killed"))
    assert run.state.phase is RunPhase.INTERRUPTED
    assert run.journaled(Ended) == []


def test_a_checkpoint_that_does_not_come_is_not_waited_for_for_ever(run: Run) -> None:
    requeued(run)
    for _ in range(25):
        run.tick(1.0)
        for name in ("live-0", "live-1"):
            if name in run.state.membership.workers:
                run.say(m.Heartbeat(worker=name, generation=0, step=0, step_seconds=0.1, warm=True))
    assert run.state.phase is RunPhase.INTERRUPTED


def test_while_only_the_grace_time_runs_the_workers_save_and_stay(run: Run) -> None:
    run.feed(Interrupted(run.now, "job 7 is being preempted", requeued=False))
    held = run.state.barriers.checkpoint
    assert held is not None
    run.say(m.CheckpointWritten(worker="live-0", step=held.step, ok=True, path="p"))
    run.tick(1.0)
    assert not run.sent(m.Leave)
    requeued(run)
    run.say(m.CheckpointWritten(worker="live-0", step=held.step + 1, ok=True, path="p"))
    assert run.state.phase is RunPhase.INTERRUPTED


def test_a_run_that_has_not_begun_to_train_leaves_at_once() -> None:
    run = Run()
    run.register("live-0")
    requeued(run)
    assert run.state.phase is RunPhase.INTERRUPTED
