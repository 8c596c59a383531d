"""A validation gives the same whatever becomes of the world in its midst; several members in threads, no engine."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worker_lab import job

from liver_slurm.base.errors import BadInput
from liver_slurm.config.schema import JobConfig
from liver_slurm.config.validation import ValidationSection
from liver_slurm.engine.api import Evaluation
from liver_slurm.rundir.validation import read_validations
from liver_slurm.worker import validation as module
from liver_slurm.worker.validation import Progress, Validation, begun, completed, farthest

SAMPLES, STEP = 40, 20


def loss_of(sample: int) -> float:
    return float((sample * 37 + 11) % 64)


WHOLE = sum(map(loss_of, range(SAMPLES))) / SAMPLES


class World:
    """Members that meet at each batch, as in a collective; one that is lost breaks it."""

    def __init__(self, generation: int, size: int) -> None:
        self.generation, self.size = generation, size
        self._barrier = threading.Barrier(size)
        self._values: list[Any] = [None] * size

    def gather(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        self._barrier.wait(60)
        found = list(self._values)
        self._barrier.wait(60)
        return found

    def lose(self) -> None:
        self._barrier.abort()  # whoever waits gets a RuntimeError


class Shard:
    """What a member sees of its world."""

    def __init__(self, world: World, rank: int, dies_after: int | None = None) -> None:
        self.lab, self.rank, self._left = world, rank, dies_after
        self.world = SimpleNamespace(
            membership=SimpleNamespace(generation=world.generation), layout=SimpleNamespace(size=world.size)
        )

    def evaluate(self, _samples: object, first: int, count: int, interrupt: bool) -> Evaluation:
        if self._left is not None:
            if self._left == 0:
                self.lab.lose()
                raise RuntimeError("killed")
            self._left -= 1
        interrupted = any(self.lab.gather(self.rank, interrupt))
        return Evaluation(sum(map(loss_of, range(first, first + count))), count, interrupted)


def compare(shard: Any, own: Progress) -> Progress:
    return farthest(shard.lab.gather(shard.rank, own))


def config_of(**changes: Any) -> JobConfig:
    changed = ValidationSection(paths=("held-out",), every=10)
    return replace(job(Path("/nowhere")), validation=replace(changed, **changes))


def member(path: Path = Path("/nowhere/validation.jsonl"), **changes: Any) -> Validation:
    return Validation(config_of(**changes), range(SAMPLES), path, lambda: None)  # type: ignore[arg-type]


def go(validation: Validation, shard: Shard, interrupt_at: int | None = None) -> bool | None:
    """Whether the validation is done; None: the world broke."""
    calls = iter(range(1000))
    try:
        return validation.run(shard, STEP, lambda: next(calls) == interrupt_at)  # type: ignore[arg-type]
    except RuntimeError:
        return None


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[int, int, str, int, int]]:
    """Of each world: who stays of the one before, joiners, what happens, at which batch, to whom."""
    return [
        (
            draw(st.integers(1, 3)),
            draw(st.integers(0, 2)),
            draw(st.sampled_from(["interrupted", "lost", "resumed"])),
            draw(st.integers(0, 3)),
            draw(st.integers(0, 4)),
        )
        for _ in range(draw(st.integers(0, 4)))
    ]


def in_one_world(generation: int, members: list[Validation], what: str, batch: int, victim: int) -> list[bool | None]:
    """What each member's validation comes to."""
    world = World(generation, len(members))
    done: list[bool | None] = [None] * len(members)

    def life(rank: int, validation: Validation) -> None:
        mine = rank == victim
        shard = Shard(world, rank, batch if mine and what == "lost" else None)
        done[rank] = go(validation, shard, batch if mine and what in ("interrupted", "resumed") else None)
        if what == "resumed" and done[rank] is False:  # what was due there is over, in the same world
            done[rank] = go(validation, shard)

    threads = [threading.Thread(target=life, args=each) for each in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return done


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stories())
def test_the_loss_is_that_of_every_sample_once(
    monkeypatch: pytest.MonkeyPatch, story: list[tuple[int, int, str, int, int]]
) -> None:
    monkeypatch.setattr(module, "_compare", compare)
    members = [member(), member()]
    for generation, (stay, join, what, batch, victim) in enumerate([*story, (2, 1, "nothing", 0, 0)]):
        members = members[:stay] + [member() for _ in range(join)]
        done = in_one_world(generation, members, what, batch, victim % len(members))
        if what == "lost" and None in done:
            del members[victim % len(members)]
            members = members or [member()]
        else:
            assert len(set(done)) == 1, "all say the same"
    assert done == [True] * len(members)
    assert {one.progress._replace(seconds=0.0) for one in members} == {
        Progress(STEP, SAMPLES, WHOLE * SAMPLES, SAMPLES, 0.0, WHOLE, STEP, 0)
    }
    assert not any(one.due(generation, STEP) or one.under_way for one in members)


def test_when_there_is_one() -> None:
    validation = member(every=30)
    falls = [step for step in range(81) if validation.falls_on(step)]
    assert falls == [30, 60, 80], "after the last step, too; not before the first"
    assert validation.due(0, 30)
    assert not validation.due(0, 31)


def test_what_is_left_over_of_a_micro_batch_is_left_out() -> None:
    config = replace(config_of(samples=21), train=replace(config_of().train, micro_batch_size=4))
    assert Validation(config, range(SAMPLES), Path("/nowhere/x"), lambda: None).total == 20  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"3 samples are fewer than train\.micro_batch_size 4"):
        Validation(config, range(3), Path("/nowhere/x"), lambda: None)  # type: ignore[arg-type]


def at(step: int, loss: float, before: Progress) -> Progress:
    return completed(begun(before, step)._replace(samples=1, loss_sum=loss, tokens=1))


def test_a_loss_that_is_not_finite_is_no_best_one() -> None:
    progress = Progress()
    for step, loss in ((10, 5.0), (20, 4.0), (30, float("nan")), (40, 4.5)):
        progress = at(step, loss, progress)
    assert (progress.best_step, progress.best_loss, progress.since_best) == (20, 4.0, 2)


def test_it_gives_up_after_so_many_without_a_best_one(monkeypatch: pytest.MonkeyPatch) -> None:
    validation = member(patience=2)
    for step, loss, over in ((10, 5.0, False), (20, 6.0, False), (30, 5.0, True), (40, 4.0, False)):
        validation.progress = at(step, loss, validation.progress)
        assert validation.gives_up is over
    assert not member().gives_up


def test_a_run_that_goes_on_knows_its_best_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_compare", compare)
    path = tmp_path / "validation.jsonl"
    first = member(path)
    assert first.metrics(0, "tp1pp1dp1") is None
    assert go(first, Shard(World(0, 1), 0))
    line = first.metrics(3, "tp1pp1dp1")
    assert line is not None
    path.write_bytes(msgspec.json.encode(line) + b"\n")
    assert list(read_validations(path)) == [line]
    again = member(path, keep_best=True)
    assert again.progress.best_step == again.keeps == STEP
    assert again.progress.loss == pytest.approx(WHOLE)


def test_a_loss_that_is_not_finite_is_null_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = member()
    validation.progress = at(10, float("nan"), Progress())._replace(samples=SAMPLES)
    path = tmp_path / "validation.jsonl"
    line = validation.metrics(0, "tp1pp1dp1")
    path.write_bytes(msgspec.json.encode(line))
    assert b'"loss":null,"perplexity":null' in path.read_bytes()
    (read,) = read_validations(path)
    assert read.loss != read.loss
    assert (read.best_step, read.best_loss) == (-1, float("inf"))
