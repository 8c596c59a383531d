"""The account adds up, whatever happened to the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from event_samples import committed
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_stories import Story, facts, job, validated

from liver_slurm.observability.ledger.account import NO_WORLD, Account, held, make_account
from liver_slurm.observability.ledger.causes import Cause, text
from liver_slurm.observability.ledger.document import document, documents, make_ledger
from liver_slurm.observability.ledger.facts import linked
from liver_slurm.rundir import events as e
from liver_slurm.rundir.validation import ValidationMetrics

MILLISECOND = 1e-3
SHORT = st.floats(0.0, 30.0)


def check(account: Account) -> None:
    """Every second of every device once: per presence, worker, generation, partition and in all; and the run's own."""
    total = 0.0
    for one, spent in zip(account.presences, account.spent, strict=True):
        seconds = sum(sum(by_cause.values()) for by_cause in spent.values())
        assert seconds == pytest.approx(one.until - one.since, abs=MILLISECOND / 100)
        assert all(value >= 0.0 for by_cause in spent.values() for value in by_cause.values())
        assert account.facts.created <= one.since <= one.until <= account.facts.until + MILLISECOND
        total += one.until - one.since
    ledger = make_ledger(account.facts)
    found = document(ledger)
    assert found["device_s"] == pytest.approx(total, abs=MILLISECOND)
    assert sum(found["buckets"].values()) == pytest.approx(total, abs=MILLISECOND)
    for rows in ("workers", "generations", "partitions"):
        assert sum(row["device_s"] for row in found[rows]) == pytest.approx(total, abs=MILLISECOND)
        assert sum(sum(row["buckets"].values()) for row in found[rows]) == pytest.approx(total, abs=MILLISECOND)
    wall = account.facts.until - account.facts.created
    assert found["wall_s"] == wall
    assert sum(found["wall_buckets"].values()) == pytest.approx(wall, abs=MILLISECOND)
    assert ledger.sizes.held.integral() == pytest.approx(found["held_device_s"], abs=MILLISECOND)
    for name in ("stepping_slice_efficiency", "available_slice_efficiency"):
        assert found[name] >= 0.0
    assert ledger.sizes.world.integral() <= ledger.sizes.held.integral() + MILLISECOND
    assert 0.0 <= found["ettr"] <= 1.0
    assert 0.0 <= found["capacity_goodput"] <= 1.0 + 1e-9


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """A run that grows, shrinks, is preempted, killed, requeued, succeeded, and may end."""
    story = Story(detailed=draw(st.booleans()))
    story.start(draw(SHORT), draw(SHORT), draw(st.floats(0.0, 2.0)))
    story.train(draw(st.integers(0, 5)), first=draw(st.floats(0.0, 2.0)))
    kinds = (
        "arrive",
        "grow",
        "give up",
        "shrink",
        "leave",
        "interrupt",
        "die",
        "succeed",
        "train",
        "save",
        "lose",
        "validate",
    )
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=12)):
        _happen(draw, story, kind)
    if draw(st.booleans()):
        story.end(draw(st.sampled_from(("finished", "failed", "cancelled", "stopped"))))
    return story


def _happen(draw: st.DrawFn, story: Story, kind: str) -> None:
    standbys = [name for name in story.world if name.startswith("standby")]
    if kind == "arrive":
        story.arrive(draw(st.integers(0, 2)), draw(SHORT))
    elif kind in ("grow", "give up"):
        story.change(draw(st.floats(0.0, 1.0)), commit=kind == "grow")
    elif kind == "shrink" and standbys:
        story.notice(standbys[0])
        story.change(draw(st.floats(0.0, 1.0)), "notice", (standbys[0],))
    elif kind == "lose" and standbys:
        story.lose(standbys[-1], draw(st.floats(0.0, 5.0)), draw(SHORT))
    elif kind == "leave" and story.idle:
        story.leave(story.idle[0])
    elif kind in ("interrupt", "die"):
        keep = draw(st.integers(0, max(0, story.trained)))
        (story.interrupt if kind == "interrupt" else story.die)(draw(SHORT), keep, draw(SHORT))
    elif kind == "succeed":
        story.hand_over(draw(SHORT))
    elif kind == "validate":
        story.validate(draw(SHORT))
    elif kind == "save":
        story.say(e.CheckpointWritten(step=story.trained, seconds=1.0, stall_s=draw(st.floats(0, 0.1)), path="p"))
    story.train(draw(st.integers(0, 4)), gap=draw(st.floats(0.0, 0.2)))


@given(stories())
@settings(max_examples=100)
def test_it_adds_up_for_any_run(story: Story) -> None:
    check(make_account(story.facts()))


@given(stories())
@settings(max_examples=50)
def test_two_guaranteed_devices_are_accounted_for_from_creation_to_end(story: Story) -> None:
    # Counted without the ledger: they are owed all the time. A successor's workers come on top while both are there.
    if any(name not in ("live-0", "live-1") for name in story.guaranteed):
        return
    account = make_account(story.facts())
    seconds = sum(one.until - one.since for one in account.presences if one.guaranteed)
    gone = 2 * 0.05  # after its end, a run's workers take a moment to leave, and are told one by one
    assert seconds == pytest.approx(2 * (account.facts.until - account.facts.created), abs=gone)


def _any_event() -> st.SearchStrategy[Any]:
    names = st.sampled_from(["live-0", "live-1", "live-7-0", "standby-1-0", "standby-2-0"])
    members = st.lists(names, max_size=4, unique=True).map(tuple)
    number = st.integers(-1, 5)
    step = st.integers(0, 12)

    def build(kind: Callable[..., Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.builds(kind, time=st.floats(0.0, 60.0), generation=number, **fields)

    jobs = st.sampled_from(["1", "2"])
    states = st.sampled_from(["pending", "running", "suspended", "ending", "gone"])
    return st.one_of(
        build(e.CoordinatorStarted, phase=st.sampled_from(["starting", "recovering"]), job_started=st.floats(0, 60)),
        build(e.WorldLive, members=members, prepare_s=st.floats(0.0, 50.0)),
        build(e.ReconfigurationStarted, to=st.just("tp1pp1dp2"), members=members, joiners=members),
        build(e.ReconfigurationAborted, joiners=members),
        build(
            committed, members=members, cutover_step=step, pause_s=st.floats(0.0, 9.0), gate_s=st.floats(0.0, 9.0),
            hook_s=st.floats(0.0, 9.0),
        ),
        build(e.WorkerLost, worker=names, in_world=st.booleans()),
        build(e.WorkerLeft, worker=names),
        build(e.StandbyReady, worker=names, job_id=jobs),
        build(e.WorkerRegistered, worker=names, job_id=jobs, warm=st.booleans()),
        build(e.StandbyJobChanged, job_id=jobs, state=states, workers=st.integers(0, 3)),
        build(e.CapacityChanged, workers=st.dictionaries(st.just("scavenger"), st.integers(0, 9))),
        build(e.Notice, worker=names),
        build(e.StandbyRelease, job_id=jobs, reason=st.just("")),
        build(e.Interrupted),
        build(e.BegunAnew, step=step, steps_lost=step, trained_until=st.floats(0.0, 60.0)),
        build(e.CheckpointWritten, step=step, seconds=st.just(1.0), stall_s=st.floats(0.0, 9.0), path=st.just("")),
        build(e.RunEnded, outcome=st.sampled_from(["finished", "failed"])),
    )  # fmt: skip


_ROW = st.fixed_dictionaries(
    {
        "step": st.integers(1, 12),
        "start": st.floats(0.0, 60.0),
        "end": st.floats(0.0, 60.0),
        "generation": st.integers(0, 5),
        "data_s": st.floats(-1.0, 9.0),
    }
)


_VALIDATION = st.builds(validated, st.integers(0, 12), st.floats(-1.0, 70.0), st.floats(0.0, 70.0))


@given(st.lists(_any_event(), max_size=25), st.lists(_ROW, max_size=12), st.lists(_VALIDATION, max_size=4))
@settings(max_examples=300)
def test_it_adds_up_for_files_that_make_no_sense(
    events: list[Any], rows: list[dict[str, Any]], validations: list[ValidationMetrics]
) -> None:
    check(make_account(facts(events, rows, validations=tuple(validations))))


def seconds_of(account: Account, worker: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for one, spent in zip(account.presences, account.spent, strict=True):
        if one.worker == worker:
            for by_cause in spent.values():
                for cause, seconds in by_cause.items():
                    if seconds > MILLISECOND:
                        found[text(cause)] = found.get(text(cause), 0.0) + seconds
    return found


def test_a_standbys_way_through_a_run() -> None:
    story = Story()
    story.start(10.0, 8.0, 2.0)
    story.train(5)
    story.arrive(1, 4.0)  # from here on nothing is trained for 4 s, which nothing on record explains
    story.train(1)
    story.change(0.5)
    story.train(3)
    story.notice("standby-1-0")
    story.change(0.1, "notice", ("standby-1-0",))
    story.now += 0.7
    story.leave("standby-1-0")
    story.train(2)
    story.end()
    account = make_account(story.facts())
    check(account)
    spent = seconds_of(account, "standby-1-0")
    assert spent["standby_start"] == pytest.approx(4.0)
    assert spent["idle"] == pytest.approx(1.01)
    assert spent["joining"] == pytest.approx(2.01)
    assert spent["leaving"] == pytest.approx(0.81)  # the pause of the change that leaves it out, too
    assert spent["pause"] == pytest.approx(0.5 + 0.05 + 0.005)
    guaranteed = seconds_of(account, "live-0")
    assert guaranteed["queue"] == pytest.approx(10.0)
    assert guaranteed["start"] == pytest.approx(8.0)
    assert guaranteed["first_world"] == pytest.approx(2.0)
    assert "idle" not in guaranteed
    (preempt,) = [row for row in document(make_ledger(account.facts))["partitions"] if row["partition"] == "preempt"]
    assert preempt["device_s"] == pytest.approx(sum(spent.values()), abs=0.01)


@pytest.mark.parametrize("each", [1, 10])
def test_validations_have_a_cause_of_their_own(each: int) -> None:
    story = Story()
    story.start(1.0, 1.0, 1.0)
    for _ in range(20):
        story.train(each)
        story.validate(20.0)  # the last one is behind the last step
    story.end()
    account = make_account(story.facts())
    check(account)
    run = account.of_the_run()
    assert run[Cause.VALIDATION] == pytest.approx(400.0, abs=0.3)
    assert run[Cause.STEP] == pytest.approx(20 * each * 1.01, abs=0.3)
    assert run.get(Cause.BETWEEN, 0.0) == pytest.approx(0.0, abs=0.01)
    assert document(make_ledger(account.facts))["wall_buckets"]["CUSTOM_BADPUT_EVENTS"] == run[Cause.VALIDATION]


def test_a_validation_beside_a_checkpoint_a_change_and_a_loss() -> None:
    story = Story()
    story.start(1.0, 1.0, 1.0)
    story.train(10)
    story.validate(5.0)
    story.say(e.CheckpointWritten(step=10, seconds=1.0, stall_s=0.5, path="p"))
    story.now += 0.5
    story.train(10)
    story.arrive(0, 0.0)
    story.change(0.2)
    story.train(10)
    story.lose(story.world[-1], found=0.5, recovery=2.0)
    story.validate(3.0)  # after the loss, so that the gap is one of recovery
    story.train(10)
    story.end()
    account = make_account(story.facts())
    check(account)
    run = account.of_the_run()
    assert run[Cause.VALIDATION] == pytest.approx(5.0, abs=0.01)
    assert run[Cause.CHECKPOINT] == pytest.approx(0.5, abs=0.01)
    assert run[Cause.PAUSE] == pytest.approx(0.2 + 0.03, abs=0.01)
    assert run[Cause.RECOVERY] == pytest.approx(5.0, abs=0.1)


def test_steps_that_are_trained_again_are_lost_work() -> None:
    story = Story()
    story.start(0.0, 1.0, 1.0)
    story.train(10)
    story.interrupt(away=20.0, keep=6, boot=3.0)
    story.train(4)
    story.end()
    ledger = make_ledger(story.facts())
    check(ledger.account)
    assert document(ledger)["lost_work"]["steps"] == 4
    run = ledger.account.of_the_run()
    assert run[Cause.STEP] == pytest.approx(10.0, abs=0.15)
    assert run[Cause.WASTED] == pytest.approx(4.0, abs=0.1)
    assert run[Cause.REQUEUE] == pytest.approx(20.0, abs=0.2)
    assert run[Cause.RECOVERY] == pytest.approx(3.2, abs=0.1)


@pytest.mark.parametrize("detailed", [True, False])
def test_a_run_that_was_killed_and_started_again(detailed: bool) -> None:
    story = Story(detailed=detailed)
    story.start(0.0, 1.0, 1.0)
    story.train(10)
    story.die(away=20.0, keep=10, boot=3.0)
    story.train(4)
    run = make_account(story.facts()).of_the_run()
    # Older versions do not say when Slurm started the job, only when its coordinator began to serve, 0.75 s later.
    down = run.get(Cause.REQUEUE, 0.0) + run.get(Cause.WASTED, 0.0)
    assert down == pytest.approx(20.0 if detailed else 20.75, abs=0.1)


@pytest.mark.parametrize("way", ["lost, then killed", "lost, then interrupted", "a failed start"])
def test_a_job_that_waits_to_start_again_holds_nothing_whatever_was_lost_before(way: str) -> None:
    story = Story()
    story.start(0.0, 1.0, 1.0)
    story.train(100)
    story.say(e.WorkerLost(worker="live-1", in_world=True))
    story.now += 2.0
    story.say(e.CheckpointRefused(path="p", error="the coordinator's last word"))
    if way == "lost, then interrupted":
        story.interrupt(36_000.0, 100, 3.0)
    else:
        story.die(36_000.0, 100, 3.0)
    if way == "a failed start":  # it has a world, which does not finish a step
        story.die(36_000.0, 100, 3.0)
    story.train(100)
    story.end()
    ledger = make_ledger(story.facts())
    check(ledger.account)
    run = ledger.account.of_the_run()
    away = 72_000.0 if way == "a failed start" else 36_000.0
    assert run[Cause.REQUEUE] == pytest.approx(away, abs=1.0)
    assert ledger.capacity_goodput > 0.85


def test_a_run_that_waits_in_the_queue_is_owed_its_devices() -> None:
    waiting = facts([], [], created=100.0, until=160.0, outcome="queued")
    account = make_account(waiting)
    check(account)
    assert account.total() == {Cause.QUEUE: pytest.approx(120.0)}
    assert held(account.total()) == 0.0
    assert make_ledger(waiting).ettr == 0.0


def test_a_run_that_was_created_this_moment_has_a_ledger() -> None:
    assert document(make_ledger(facts([], [])))["ettr"] == 0.0


def test_a_run_in_progress_has_a_ledger_until_now() -> None:
    story = Story()
    story.start(1.0, 1.0, 1.0)
    story.train(3)
    story.now += 0.4
    story.notice("live-1")
    run = make_account(story.facts()).of_the_run()
    assert run[Cause.IN_FLIGHT] == pytest.approx(0.41)


def test_workers_on_which_nothing_registered_are_held_too() -> None:
    story = Story()
    story.start(0.0, 1.0, 1.0)
    story.say(e.StandbyJobChanged(job_id="7", state="running", partition="night", workers=2))
    story.train(5)
    story.say(e.StandbyJobChanged(job_id="7", state="gone", partition="night"))
    account = make_account(story.facts())
    night = [one for one in account.presences if one.partition == "night"]
    assert [one.until - one.since for one in night] == pytest.approx([5.05, 5.05])


def test_a_worker_that_is_left_out_is_idle_until_it_is_taken_in() -> None:
    story = Story()
    story.start(0.0, 1.0, 1.0)
    story.train(3)
    story.change(0.1, "request", ("live-1",))
    story.train(6)
    story.end()
    account = make_account(story.facts())
    check(account)
    assert seconds_of(account, "live-1")["idle"] == pytest.approx(6.0, abs=0.5)


def test_what_another_run_trains_again_is_lost() -> None:
    story = Story()
    story.start(0.0, 1.0, 1.0)
    story.train(10)
    story.end("failed")
    after = make_ledger(story.facts(counted=7))
    assert after.account.of_the_run()[Cause.STEP] == pytest.approx(7.0, abs=0.1)
    assert document(after)["lost_work"] == {"steps": 3, "device_s": pytest.approx(6.0, abs=0.2)}


def test_a_run_is_known_by_its_directory_whatever_path_leads_there(tmp_path: Path) -> None:
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    story = Story()
    story.start(0.0, 1.0, 1.0)
    story.train(10)
    story.end("failed")
    after = Story(trained=7)
    after.start(0.0, 1.0, 1.0)
    after.train(5)
    runs = [
        story.facts(run=str(tmp_path / "alias" / "a")),
        after.facts(run=str(tmp_path / "b"), resumed_from=str(tmp_path / "real" / "a")),
    ]
    first, second = (document(make_ledger(one)) for one in linked(runs))
    assert (first["lost_work"]["steps"], second["lost_work"]["steps"]) == (3, 0)
    assert (first["tokens"], second["tokens"]) == (7 * 1024, 5 * 1024)
    assert (first["successor_known"], second["successor_known"]) == (True, False)


def test_several_runs_add_up() -> None:
    first, second = Story(), Story()
    for story, steps in ((first, 5), (second, 15)):
        story.start(2.0, 1.0, 1.0)
        story.train(steps)
        story.end()
    found = documents([make_ledger(first.facts()), make_ledger(second.facts())])
    total = found["total"]
    assert total["device_s"] == pytest.approx(sum(run["device_s"] for run in found["runs"]))
    assert total["ettr"] == pytest.approx(
        sum(run["wall_buckets"]["PRODUCTIVE"] for run in found["runs"]) / total["wall_s"]
    )


def test_generations_and_what_is_in_none() -> None:
    story = Story()
    story.start(2.0, 1.0, 1.0)
    story.train(3)
    story.arrive(0, 1.0)
    story.change(0.2)
    story.train(3)
    rows = document(make_ledger(story.facts()))["generations"]
    assert [row["generation"] for row in rows] == [0, 1, NO_WORLD]
    assert [row["workers"] for row in rows] == [2, 3, None]
    assert rows[-1]["buckets"]["QUEUE"] == pytest.approx(4.0)


def test_guaranteed_components_may_be_in_partitions_of_their_own() -> None:
    story = Story()
    story.start(2.0, 1.0, 1.0)
    story.train(3)
    rows = document(make_ledger(story.facts(job=job(partitions=("a100", "h100")))))["partitions"]
    assert {row["partition"] for row in rows} == {"a100", "h100"}
