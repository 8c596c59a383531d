"""When a worker begins checkpoints, and what it says of them; nothing is written here."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from worker_lab import job

from liver_slurm.config.schema import CheckpointSection
from liver_slurm.engine.api import StepFlags
from liver_slurm.engine.checkpoint import Written
from liver_slurm.parallel.layout import Layout
from liver_slurm.protocol.messages import CheckpointWritten
from liver_slurm.rundir.paths import RunDir
from liver_slurm.worker import checkpoint_copies
from liver_slurm.worker import checkpointing as module
from liver_slurm.worker.checkpointing import Checkpointing

EVERY = 4


class Slow:
    """A checkpointer that is never done; another save would wait for it for ever."""

    def __init__(self, state: Any, *_: object, after: Any, **__: object) -> None:
        self.state, self.after = state, after
        self.saved: list[tuple[int, Any]] = []
        self.writing = False

    def save(self, step: int, done: Any) -> None:
        self.saved.append((step, done))


class Lab:
    def __init__(self, folder: Path, **keys: Any) -> None:
        self.said: list[Any] = []
        config = job(folder, checkpoint=CheckpointSection(**{"every": EVERY, "at_end": False, **keys}))
        control: Any = SimpleNamespace(post=self.said.append)
        self.checkpoints = Checkpointing("live-0", config, RunDir(folder), control, lambda waiting, error: None)
        self.enter(rank=0)

    def enter(self, rank: int, dp: int = 2) -> Slow | None:
        state: Any = SimpleNamespace(world=SimpleNamespace(rank=rank, layout=Layout(1, dp, 1)))
        return self.checkpoints.enter(state)  # type: ignore[return-value]

    @property
    def writer(self) -> Slow:
        return self.checkpoints._checkpointer  # type: ignore[return-value]

    @property
    def saved(self) -> list[int]:
        return [step for step, _ in self.writer.saved]

    def trained(self, step: int, saving: bool = False, due: bool = False) -> None:
        """The step before ``step`` is made; ``saving``, ``due``: what its members said of checkpoints."""
        self.checkpoints.completed(step, StepFlags(stop=False, save=due, saving=saving))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(module, "Checkpointer", Slow)
    return Lab(tmp_path)


def test_a_requested_checkpoint_may_be_the_scheduled_one(lab: Lab) -> None:
    lab.trained(EVERY)
    assert lab.saved == [EVERY]
    lab.checkpoints.request(EVERY)
    assert lab.saved == [EVERY]
    assert not lab.checkpoints.asks(1), "nothing is left to be made up for"


def test_one_that_is_asked_for_while_another_is_written_comes_after_it(lab: Lab) -> None:
    lab.trained(EVERY)
    lab.trained(EVERY + 1, saving=True)
    lab.checkpoints.request(EVERY + 1)
    assert lab.saved == [EVERY]
    assert lab.checkpoints.asks(1)
    lab.trained(EVERY + 2, saving=True, due=True)
    assert lab.saved == [EVERY]
    lab.trained(EVERY + 3, due=True)
    assert lab.saved == [EVERY, EVERY + 3]


def test_rank_0_asks_for_one_that_is_due_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lab: Lab
) -> None:
    del lab  # its checkpointer is put in place
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    checkpoints = Lab(tmp_path, every=None).checkpoints
    assert not checkpoints.asks(0)
    now[0] += 1e6
    assert (checkpoints.asks(0), checkpoints.asks(1)) == (True, False)


def test_in_a_new_world_all_save_what_one_has_saved(lab: Lab) -> None:
    lab.trained(EVERY, saving=True, due=True)
    lab.checkpoints.request(EVERY)
    assert lab.saved == [], "another one is being written"
    before = lab.writer
    assert lab.enter(rank=1) is before
    assert lab.writer.after is before, "which may be writing still"
    lab.checkpoints.request(EVERY)
    assert lab.saved == [EVERY]


@pytest.mark.parametrize(
    ("rank", "error", "ok"), [(0, "", True), (0, "full", False), (1, "", None), (1, "full", False)]
)
def test_rank_0_says_that_it_is_written_and_each_that_it_is_not(
    lab: Lab, rank: int, error: str, ok: bool | None
) -> None:
    lab.enter(rank)
    lab.trained(EVERY)
    ((_, done),) = lab.writer.saved
    lab.enter(1 - rank)
    done(Written(EVERY, Path("there"), error, 2.0, 1.0))
    assert [(one.step, one.ok, one.error) for one in lab.said] == ([] if ok is None else [(EVERY, ok, error)])
    assert all(isinstance(one, CheckpointWritten) for one in lab.said)


def test_the_last_one_is_not_waited_for_until_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lab: Lab
) -> None:
    del lab  # its checkpointer is put in place
    goes_on, begun = threading.Event(), threading.Event()

    def copy(*_: object) -> str:
        begun.set()
        assert goes_on.wait(30.0)
        return ""

    monkeypatch.setattr(checkpoint_copies, "copy_checkpoint", copy)
    lab = Lab(tmp_path, copy_to=str(tmp_path / "copies"), at_end=True)
    lab.checkpoints.request(3)
    ((_, written),) = lab.writer.saved
    monkeypatch.setattr(lab.writer, "wait", lambda: None, raising=False)
    written(Written(step=3, path=tmp_path / "step-3", error="", seconds=1.0, stall_seconds=0.0))
    assert begun.wait(30.0)
    lab.checkpoints.last(3)
    assert lab.checkpoints.copying
    goes_on.set()
    lab.checkpoints.wait_for_copies()
    assert not lab.checkpoints.copying
