"""A live worker dies without a word: the run goes on in the same processes, with the losses of one undisturbed.

Each test prints what it measured: how soon the death was believed, and how soon a step was trained again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from checkpoint_files import assert_same, newest
from coordinator_lab import until
from mixtures import BIASES, EXPERTS
from paced_samples import BROKEN
from worker_lab import STARTUP, WorkerLab, job

from liver_slurm.config.schema import CheckpointSection, JobConfig, RecoverySection
from liver_slurm.parallel.layout import Layout
from liver_slurm.rundir.metrics import read_metrics

pytestmark = pytest.mark.slow

LIVE = ("live-0", "live-1", "live-2")
Make = Callable[[JobConfig], WorkerLab]


def config_of(folder: Path, live: int = 3) -> JobConfig:
    """Three live workers in a plain data parallel world."""
    config = job(folder, live=live)
    layouts = tuple(f"tp1pp1dp{size}" for size in range(1, 5))
    train = replace(config.train, distributed_optimizer=False)
    return replace(config, elastic=replace(config.elastic, layouts=layouts), train=train)


@pytest.fixture
def make() -> Iterator[Make]:
    """``make(config)``: a run that has begun, at a slow pace until it is told to finish."""
    labs: list[WorkerLab] = []

    def begin(config: JobConfig) -> WorkerLab:
        labs.append(WorkerLab(config))
        labs[-1].slow.touch()
        labs[-1].begin()
        return labs[-1]

    yield begin
    for lab in labs:
        lab.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, float]]:
    """Losses of the run that nothing happens to."""
    with closing(WorkerLab(config_of(tmp_path_factory.mktemp("undisturbed")))) as lab:
        lab.begin()
        yield lab.finish()


def kill(run: WorkerLab, *names: str) -> float:
    """SIGKILL, of which nobody tells the coordinator; returns when."""
    pids = [run.pid(name) for name in names]
    at = time.time()
    for name, pid in zip(names, pids, strict=True):
        os.kill(pid, signal.SIGKILL)
        run.killed.add(name)
    return at


def recovered(run: WorkerLab, what: str, at: float, count: int = 1) -> None:
    """Wait for the world after the ``count``-th broken one, and print how long it took."""
    committed = [run.wait_event("recovery_planned", count, STARTUP)]
    generation = committed[0]["generation"]
    run.wait_step(run.status()["step"] + 2)
    lost = run.events("worker_lost")
    again = next(line.end for line in read_metrics(run.run_dir.metrics) if line.generation > generation)
    print(
        f"{what}: believed {max(event['time'] for event in lost) - at:.2f} s after the kill "
        f"({', '.join(event['detected_by'] for event in lost)}), trained again after {again - at:.2f} s, "
        f"state from {committed[0]['state_from']}: {committed[0]['reason']}"
    )


def assert_close(losses: dict[int, float], expected: dict[int, float], rel: float = 1e-6) -> None:
    assert losses == {step: pytest.approx(expected[step], rel=rel) for step in expected}


def test_the_survivors_go_on_without_it(tmp_path: Path, make: Make, undisturbed: dict[int, float]) -> None:
    # LS-1, LS-4, LS-34
    run = make(config_of(tmp_path))
    pids = {name: run.processes[name].pid for name in LIVE}
    run.wait_step(4)
    at = kill(run, "live-1")
    recovered(run, "dp3 - 1", at)
    assert run.committed_to("tp1pp1dp2")["generation"] == 1
    assert {name: run.pid(name) for name in ("live-0", "live-2")} == {name: pids[name] for name in ("live-0", "live-2")}
    event = run.events("worker_lost")[0]
    assert (event["worker"], event["in_world"], event["detected_by"]) == ("live-1", True, "hang-up")
    at = kill(run, "live-0")
    recovered(run, "dp2 - 1", at, count=2)
    assert run.committed_to("tp1pp1dp1")["generation"] == 2
    assert_close(run.finish(), undisturbed)


@pytest.mark.long
def test_a_step_that_never_ends_costs_its_worker(tmp_path: Path, make: Make, undisturbed: dict[int, float]) -> None:
    """The training thread hangs, as where a card does; all others of the process go on."""
    # LS-1, LS-4, LS-34
    config = config_of(tmp_path)
    data = replace(config.data, provider="hanging_samples:provide")
    run = make(replace(config, job=replace(config.job, lost_after=10.0), data=data))
    event = run.wait_event("worker_lost", 1, STARTUP)
    assert (event["worker"], event["in_world"], event["detected_by"]) == ("live-1", True, "stuck")
    assert run.committed_to("tp1pp1dp2")["generation"] == 1
    assert run.processes["live-1"].wait(timeout=STARTUP) == -signal.SIGKILL, "it makes room for another process"
    run.killed.add("live-1")
    assert_close(run.finish(), undisturbed)


def test_a_warm_standby_takes_its_place(tmp_path: Path, make: Make, undisturbed: dict[int, float]) -> None:
    # LS-4, LS-34
    config = config_of(tmp_path)
    layouts = ("tp1pp1dp1", "tp1pp1dp3")
    run = make(replace(config, elastic=replace(config.elastic, layouts=layouts)))
    run.wait_step(2)
    run.real_worker("standby-a")
    run.wait_event("standby_ready", 1, STARTUP)
    at = kill(run, "live-0")
    recovered(run, "dp3 - 1 + a standby", at)
    members = [one["worker"] for one in run.committed_to("tp1pp1dp3")["workers"]]
    assert sorted(members) == ["live-1", "live-2", "standby-a"]
    losses = run.finish()
    assert losses == undisturbed, "bitwise: the layout is the same"


def test_state_that_only_it_held_comes_from_a_checkpoint(
    tmp_path: Path, make: Make, undisturbed: dict[int, float]
) -> None:
    """Without mirrors the distributed optimizer's shards are gone: all go back, and each step is written once."""
    # LS-1, LS-4
    config = config_of(tmp_path)
    train = replace(config.train, distributed_optimizer=True)
    saved, recovery = CheckpointSection(every=4, at_end=False), RecoverySection(mirror="off")
    run = make(replace(config, train=train, checkpoint=saved, recovery=recovery))
    pids = {name: run.processes[name].pid for name in LIVE}
    run.wait_event("checkpoint_written", 2, STARTUP)
    at = kill(run, "live-1")
    recovered(run, "dp3 - 1, distributed optimizer", at)
    planned = run.events("recovery_planned")[0]
    assert planned["state_from"] == "checkpoint"
    assert "the distributed optimizer's shards of live-1 have neither a replica nor a mirror" in planned["reason"]
    assert planned["step"] in (4, 8, 12)
    run.committed_to("tp1pp1dp2")
    assert {name: run.pid(name) for name in ("live-0", "live-2")} == {name: pids[name] for name in ("live-0", "live-2")}
    assert_close(run.finish(), undisturbed)


def test_what_only_it_held_comes_from_its_mirror(tmp_path: Path, make: Make, undisturbed: dict[int, float]) -> None:
    """Shares of the distributed optimizer's state: no step is lost, twice in a row, without a checkpoint."""
    # LS-1, LS-4, LS-34
    config = config_of(tmp_path)
    saved = CheckpointSection(every=0, at_end=False)
    run = make(replace(config, train=replace(config.train, distributed_optimizer=True), checkpoint=saved))
    pids = {name: run.processes[name].pid for name in LIVE}
    run.wait_step(4)
    at = kill(run, "live-1")
    recovered(run, "dp3 - 1, mirrored", at)
    planned = run.events("recovery_planned")[0]
    assert (planned["state_from"], planned["mirrors"]) == ("mirrors", {"live-1": "live-2"})
    run.committed_to("tp1pp1dp2")
    assert {name: run.pid(name) for name in ("live-0", "live-2")} == {name: pids[name] for name in ("live-0", "live-2")}
    at = kill(run, "live-0")
    recovered(run, "dp2 - 1, mirrored", at, count=2)
    assert run.committed_to("tp1pp1dp1")["generation"] == 2
    assert_close(run.finish(), undisturbed)


@pytest.mark.long
def test_halves_of_muons_matrices_come_from_a_replica(tmp_path: Path, make: Make) -> None:
    """Whatever the step was at: no rank needs a peer any more for an update that another one has begun."""
    # LS-1, LS-4

    def config(name: str) -> JobConfig:
        (tmp_path / name).mkdir()
        found = config_of(tmp_path / name, live=4)
        layouts = ("tp1pp1dp1", "tp1pp1dp2", "tp1pp1dp3", "tp2pp1dp2")
        return replace(
            found,
            train=replace(found.train, optimizer="muon"),
            elastic=replace(found.elastic, layouts=layouts, initial="tp2pp1dp2"),
            checkpoint=CheckpointSection(every=0, at_end=False),
        )

    run = make(config("struck"))
    run.wait_step(4)
    at = kill(run, "live-1")
    recovered(run, "tp2dp2 - 1, muon", at)
    planned = run.events("recovery_planned")[0]
    assert planned["state_from"] == "survivors"
    run.committed_to("tp1pp1dp3")
    at = kill(run, "live-2")
    recovered(run, "dp3 - 1, muon", at, count=2)
    run.committed_to("tp1pp1dp2")
    with closing(WorkerLab(config("undisturbed"))) as lab:
        lab.begin()
        expected = lab.finish()
    assert_close(run.finish(), expected)


@pytest.mark.parametrize(
    ("layout", "distributed", "source"),
    [
        ("tp1pp1ep2dp2", False, "mirrors"),
        pytest.param("tp1pp1ep2dp4", False, "survivors", marks=pytest.mark.long),
        pytest.param("tp1pp1ep2dp4", True, "mirrors", marks=pytest.mark.long),
        pytest.param("tp2pp1ep2etp1dp2", False, "survivors", marks=pytest.mark.long),
        pytest.param("tp2pp1ep2etp1dp1", False, "mirrors", marks=pytest.mark.long),
        pytest.param("tp2pp1ep2etp1dp2", True, "mirrors", marks=pytest.mark.long),
    ],
)
def test_experts_of_the_dead_come_from_a_replica_or_its_mirror(
    layout: str, distributed: bool, source: str, tmp_path: Path, make: Make
) -> None:
    """What is no expert has replicas among all; experts have them among those of the same experts alone."""
    size = Layout.parse(layout).size

    def config(name: str) -> JobConfig:
        (tmp_path / name).mkdir()
        found = config_of(tmp_path / name, live=size)
        return replace(
            found,
            model=replace(found.model, moe_aux_loss_coeff=0.1, **EXPERTS, **BIASES),
            train=replace(found.train, distributed_optimizer=distributed),
            elastic=replace(found.elastic, layouts=("tp1pp1dp1", "tp1pp1dp3", layout), initial=layout),
            checkpoint=CheckpointSection(every=0, at_end=False),
        )

    run = make(config("struck"))
    run.wait_step(4)
    at = kill(run, "live-1")
    recovered(run, f"{layout} - 1", at)
    assert run.events("recovery_planned")[0]["state_from"] == source
    run.committed_to(f"tp1pp1dp{size - 1}")
    with closing(WorkerLab(config("undisturbed"))) as lab:
        lab.begin()
        expected = lab.finish()
    # Where two experts are as good but for rounding, which layouts do differently, a token may go to the other one.
    assert_close(run.finish(), expected, rel=1e-4)


@pytest.mark.parametrize(
    ("layout", "precision", "distributed"),
    [
        ("tp1pp1dp2", "bf16", True),
        pytest.param("tp1pp2dp1", "bf16", False, marks=pytest.mark.long),
        pytest.param("tp2pp1dp1", "fp32", True, marks=pytest.mark.long),
        pytest.param("tp1pp2vpp2dp1", "fp32", True, marks=pytest.mark.long),
    ],
)
def test_a_standby_gets_what_only_the_dead_held(
    layout: str, precision: Literal["fp32", "bf16"], distributed: bool, tmp_path: Path, make: Make
) -> None:
    """From its mirror, bit for bit: the layout stays the same."""

    # LS-3, LS-4, LS-34
    def of(folder: Path) -> JobConfig:
        config = job(folder)
        moments: Literal["fp32", "bf16"] = "bf16" if precision == "bf16" else "fp32"
        train = replace(
            config.train,
            distributed_optimizer=distributed,
            precision=precision,
            moments_precision=moments,
            ema_decay=0.9,
        )
        elastic = replace(config.elastic, layouts=(layout,), initial=layout)
        mixture = {**EXPERTS, **BIASES} if layout == "tp1pp2dp1" else {}
        model = replace(config.model, num_layers=2 * Layout.parse(layout).vpp, **mixture)
        saved = CheckpointSection(every=0, at_end=True)
        return replace(config, model=model, train=train, elastic=elastic, checkpoint=saved)

    with closing(WorkerLab(of(tmp_path / "undisturbed"))) as lab:
        lab.begin()
        expected, checkpoint = lab.finish(), newest(lab.run_dir.checkpoints)
    run = make(of(tmp_path / "run"))
    run.wait_step(2)
    run.real_worker("standby-a")
    run.wait_event("standby_ready", 1, STARTUP)
    at = kill(run, "live-1")
    recovered(run, f"{layout} {precision}, mirrored, + a standby", at)
    assert run.events("recovery_planned")[0]["mirrors"] == {"live-1": "live-0"}
    assert sorted(one["worker"] for one in run.committed_to(layout)["workers"]) == ["live-0", "standby-a"]
    assert run.finish() == expected
    assert_same(newest(run.run_dir.checkpoints), checkpoint)


def test_one_that_is_stopped_is_left_behind(tmp_path: Path, make: Make, undisturbed: dict[int, float]) -> None:
    """SIGSTOP closes no connection; when it goes on, it is not let in again, and ends."""
    run = make(config_of(tmp_path))
    run.wait_step(4)
    pid, at = run.pid("live-1"), time.time()
    os.kill(pid, signal.SIGSTOP)
    try:
        recovered(run, "dp3 - 1 that is stopped", at)
        event = run.events("worker_lost")[0]
        assert (event["worker"], event["detected_by"]) == ("live-1", "silence")
        run.committed_to("tp1pp1dp2")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert run.processes["live-1"].wait(timeout=STARTUP) == 0
    assert_close(run.finish(), undisturbed)


def ended(run: WorkerLab) -> str:
    """Wait until the run has failed, with all its processes; returns why."""
    event = run.wait_event("run_ended", 1, STARTUP)
    assert (event["outcome"], event["exit_code"]) == ("failed", 1)
    for process in run.processes.values():
        process.wait(timeout=STARTUP)
    return str(event["reason"])


def test_a_sample_that_no_worker_can_read_ends_the_run(tmp_path: Path, make: Make) -> None:
    config = config_of(tmp_path)
    run = make(replace(config, data=replace(config.data, provider="paced_samples:provide_broken")))
    step = BROKEN // config.train.global_batch_size + 1
    reason = ended(run)
    assert f"step {step} has failed 3 times in a row at live-" in reason
    assert f"each time with «ValueError: sample {BROKEN} cannot be read»" in reason
    assert len(run.events("recovery_planned")) == 2
    assert list(run.losses()) == list(range(1, step))


def test_losses_that_are_not_finite_are_not_recovered_from(tmp_path: Path, make: Make) -> None:
    config = config_of(tmp_path)
    run = make(replace(config, train=replace(config.train, lr=1e30, clip_grad=0.0, most_skipped=4)))
    assert "the last 4 steps changed nothing" in ended(run)
    assert not run.events("recovery_planned")
    assert not run.events("worker_lost")


@pytest.mark.parametrize(
    ("layout", "optimizer", "distributed", "group"),
    [
        ("tp1pp1dp3", "adam", True, 1),
        pytest.param("tp1pp3dp1", "adam", False, 1, marks=pytest.mark.long),
        pytest.param("tp1pp1dp3", "adam", True, 2, marks=pytest.mark.long),
        ("tp1pp3dp1", "muon", False, 1),
    ],
)
def test_all_go_back_to_the_last_refresh_of_mirrors(
    layout: str, optimizer: Literal["adam", "muon"], distributed: bool, group: int, tmp_path: Path, make: Make
) -> None:
    """Bit for bit, as the layout stays the same; steps behind the snapshots are trained again and written once."""

    # LS-1, LS-3, LS-4, LS-34
    def of(folder: Path) -> JobConfig:
        config = job(folder, live=3)
        train = replace(config.train, optimizer=optimizer, distributed_optimizer=distributed, ema_decay=0.9)
        train = replace(train, moments_precision="fp32" if optimizer == "muon" else "bf16")
        mixture = {**EXPERTS, **BIASES} if (layout, optimizer) == ("tp1pp3dp1", "adam") else {}
        model = replace(config.model, num_layers=3, **mixture)
        elastic = replace(config.elastic, layouts=(layout,), initial=layout)
        recovery = RecoverySection(mirror_every=4, mirror_group=group)
        saved = CheckpointSection(every=0, at_end=True)
        return replace(config, train=train, model=model, elastic=elastic, checkpoint=saved, recovery=recovery)

    with closing(WorkerLab(of(tmp_path / "undisturbed"))) as lab:
        lab.begin()
        expected, checkpoint = lab.finish(), newest(lab.run_dir.checkpoints)
    run = make(of(tmp_path / "run"))
    run.wait_step(2)
    for count, (name, standby) in enumerate([("live-1", "standby-a"), ("live-0", "standby-b")], 1):
        run.real_worker(standby)
        run.wait_event("standby_ready", count, STARTUP)
        until(lambda: all(one["mirror"] == "whole" for one in run.status()["workers"]), "all are kept", STARTUP)
        run.wait_step(run.status()["step"] + 5)
        reached = run.status()["step"]
        at = kill(run, name)
        recovered(run, f"{layout}, {group} owners a mirror, refreshed every 4 steps, + a standby", at, count=count)
        planned = run.events("recovery_planned")[-1]
        assert (planned["state_from"], [*planned["mirrors"]]) == ("mirrors", [name])
        # Of copies the last may not have been whole yet.
        assert reached - 8 <= planned["step"] <= reached + 1
    assert run.finish() == expected
    assert_same(newest(run.run_dir.checkpoints), checkpoint)
