"""Real workers that fail, are slow, or go away: training goes on as if nothing had been tried, or without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from coordinator_lab import until
from worker_lab import STARTUP, WorkerLab, job

from liver_slurm.config.schema import CheckpointSection, JobConfig
from liver_slurm.coordinator.core.reminders import PATIENCE
from liver_slurm.protocol.messages import CancelRequest, ResizeRequest
from liver_slurm.rundir.checkpoints import checkpoint_step, list_checkpoints

pytestmark = pytest.mark.slow

LIVE = ("live-0", "live-1")
Make = Callable[..., WorkerLab]


@pytest.fixture
def make() -> Iterator[Make]:
    """``make(config)``: a run that has begun, at a slow pace until it is told to finish."""
    labs: list[WorkerLab] = []

    def begin(config: JobConfig, resume: WorkerLab | None = None) -> WorkerLab:
        labs.append(WorkerLab(config, resume))
        labs[-1].slow.touch()
        labs[-1].begin()
        return labs[-1]

    yield begin
    for lab in labs:
        lab.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, float]]:
    """Losses of the run that nothing happens to."""
    with closing(WorkerLab(job(tmp_path_factory.mktemp("undisturbed")))) as lab:
        lab.begin()
        yield lab.finish()


def aborted(lab: WorkerLab, count: int) -> str:
    """Why the ``count``-th reconfiguration was aborted."""
    return str(lab.wait_event("reconfiguration_aborted", count, STARTUP)["reason"])


def generations(lab: WorkerLab) -> dict[str, int]:
    """World of each member."""
    return {one["worker"]: one["generation"] for one in lab.status()["workers"]}


def assert_close(losses: dict[int, float], expected: dict[int, float]) -> None:
    assert losses == {step: pytest.approx(expected[step], rel=1e-6) for step in losses}


def test_joiners_that_die_or_send_other_bytes_change_nothing(
    tmp_path: Path, make: Make, undisturbed: dict[int, float]
) -> None:
    # LS-7, LS-18
    run = make(job(tmp_path))
    pids = {name: run.processes[name].pid for name in LIVE}
    run.committed_to("tp1pp1dp2")

    run.real_worker("standby-a", "kill@prepare")
    run.report_end("standby-a")
    assert "standby-a was lost: killed by SIGKILL" in aborted(run, 1)

    run.real_worker("standby-b", "kill@stream")
    run.report_end("standby-b")
    reason = aborted(run, 2)
    assert "standby-b was lost" in reason or "a peer went away while state was streamed" in reason

    leaver = run.real_worker("standby-c", "corrupt@received")
    reason = aborted(run, 3)
    assert "standby-c could not stream" in reason
    assert "the digest of what arrived differs" in reason
    run.notice("standby-c")
    assert leaver.wait(timeout=STARTUP) == 0

    assert {name: run.pid(name) for name in LIVE} == pids
    assert run.finish() == undisturbed
    assert not run.events("reconfiguration_committed")


def test_a_joiner_that_is_too_slow_is_given_up(tmp_path: Path, make: Make, undisturbed: dict[int, float]) -> None:
    config = job(tmp_path)
    run = make(replace(config, job=replace(config.job, prepare_timeout=10.0)))
    pids = {name: run.processes[name].pid for name in LIVE}
    run.committed_to("tp1pp1dp2")
    slow = run.real_worker("standby-a", "delay@prepare:600")
    assert "standby-a" in aborted(run, 1)
    run.notice("standby-a")
    assert slow.wait(timeout=STARTUP) == 0
    assert {name: run.pid(name) for name in LIVE} == pids
    assert run.finish() == undisturbed


@pytest.mark.long
def test_notices_shrink_the_world_and_the_rest_stays(tmp_path: Path, make: Make, undisturbed: dict[int, float]) -> None:
    # LS-4, LS-9
    run = make(job(tmp_path))
    pids = {name: run.processes[name].pid for name in LIVE}
    # A joiner is late to enter: the coordinator says the commit again, and again, and nothing comes of it.
    first = run.real_worker("standby-a", f"delay@commit:{PATIENCE + 2}")
    run.committed_to("tp1pp1dp3")
    until(lambda: run.status()["rejected"]["by_workers"] > 0, "commits that were said again are counted")
    assert generations(run) == {"live-0": 1, "live-1": 1, "standby-a": 1}

    # A member leaves while a growth is being prepared that counts on it.
    second = run.real_worker("standby-b", "delay@prepare:3")
    until(lambda: run.status().get("phase") == "prepare", "the growth is being prepared", STARTUP)
    run.notice("standby-a")
    assert first.wait(timeout=STARTUP) == 0
    assert "standby-a will go away: SIGTERM" in aborted(run, 1)
    run.wait_event("reconfiguration_committed", 2, STARTUP)
    assert {one["worker"] for one in run.committed_to("tp1pp1dp3")["workers"]} == {*LIVE, "standby-b"}

    # Two leave at once.
    third = run.real_worker("standby-c")
    run.committed_to("tp1pp1dp4")
    run.notice("standby-b", "standby-c")
    assert [worker.wait(timeout=STARTUP) for worker in (second, third)] == [0, 0]
    run.committed_to("tp1pp1dp2")
    assert run.events("reconfiguration_committed")[-1]["cause"] == "notice"

    # One leaves that only waits: the size was asked for, so nobody joins.
    assert run.ask(ResizeRequest(workers=2)).ok
    waiting = run.real_worker("standby-d")
    run.wait_event("standby_ready", 4, STARTUP)
    before = len(run.events("reconfiguration_started"))
    run.notice("standby-d")
    assert waiting.wait(timeout=STARTUP) == 0
    until(lambda: any(one["worker"] == "standby-d" for one in run.events("worker_left")), "it has left")
    assert len(run.events("reconfiguration_started")) == before

    assert {name: run.pid(name) for name in LIVE} == pids
    assert_close(run.finish(), undisturbed)
    assert not run.events("worker_lost")


def test_a_resumed_run_goes_on_in_another_layout(tmp_path: Path, make: Make, undisturbed: dict[int, float]) -> None:
    config = replace(job(tmp_path), checkpoint=CheckpointSection(every=10, at_end=False))
    first = make(config)
    first.wait_event("checkpoint_written", 2, STARTUP)
    assert first.ask(CancelRequest()).ok
    assert all(undisturbed[step] == loss for step, loss in first.finish(code=3).items())

    step = checkpoint_step(list_checkpoints(first.run_dir.checkpoints)[-1])
    second = make(replace(config, elastic=replace(config.elastic, layouts=("tp2pp1dp1",))), first)
    losses = second.finish()
    assert list(losses) == list(range(step + 1, config.train.steps + 1))
    assert_close(losses, undisturbed)
