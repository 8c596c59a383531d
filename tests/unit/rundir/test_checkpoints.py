"""A checkpoint that has its name is complete, whenever the process that writes or removes it dies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.rundir.checkpoints import (
    begin_checkpoint,
    checkpoint_path,
    checkpoint_step,
    list_checkpoints,
    newest_checkpoint,
    part_path,
    prune_checkpoints,
    publish_checkpoint,
    read_meta,
    remove_checkpoint,
)


def save(folder: Path, step: int, text: str = "state") -> Path:
    path = checkpoint_path(folder, step)
    begin_checkpoint(path)
    (part_path(path) / "rank-0").write_text(text)
    publish_checkpoint(path, {"step": step})
    return path


def steps(folder: Path) -> list[int]:
    return [checkpoint_step(path) for path in list_checkpoints(folder)]


def test_only_what_is_complete_counts(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for step in (100, 9, 123_456_789):
        save(tmp_path, step)
    begin_checkpoint(checkpoint_path(tmp_path, 300))
    (tmp_path / "step-00000200").mkdir()
    (tmp_path / "step-00000400.old").mkdir()
    (tmp_path / "step-00000400.old" / "liver.json").write_text("{}")
    assert steps(tmp_path) == [9, 100, 123_456_789], "by number, not by name"
    assert newest_checkpoint(tmp_path, at_most=100) == checkpoint_path(tmp_path, 100)
    assert newest_checkpoint(tmp_path, at_most=8) is None
    assert read_meta(checkpoint_path(tmp_path, 9)) == {"step": 9}
    with pytest.raises(BadInput, match="is no checkpoint"):
        read_meta(tmp_path / "step-00000200")


def test_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 5, "first")
    path = save(tmp_path, 5, "second")
    assert (path / "rank-0").read_text() == "second"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, 2)
    assert steps(tmp_path) == [4, 5]
    prune_checkpoints(tmp_path, 7)
    assert steps(tmp_path) == [4, 5]


class Killed(BaseException):
    """The process dies."""


def dies_in(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, call: int) -> None:
    real: Callable[..., Any] = getattr(where, name)
    left = [call]

    def dying(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(where, name, dying)


@pytest.mark.parametrize("call", range(1, 5))
@pytest.mark.parametrize("name", ["unlink", "replace", "rmdir"])
def test_a_removal_that_is_cut_short_leaves_nothing_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    for step in (1, 2, 3):
        (save(tmp_path, step) / "rank-1").write_text("state")
    before = {path: sorted(file.name for file in path.iterdir()) for path in list_checkpoints(tmp_path)}
    dies_in(monkeypatch, os, name, call)
    try:
        prune_checkpoints(tmp_path, 1)
    except Killed:
        monkeypatch.undo()
        for path in list_checkpoints(tmp_path):
            assert sorted(file.name for file in path.iterdir()) == before[path], "what counts is whole"
        prune_checkpoints(tmp_path, 1)
    monkeypatch.undo()
    assert steps(tmp_path) == [3]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


@pytest.mark.parametrize("call", range(1, 4))
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_checkpoint_that_is_cut_short_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    save(tmp_path, 1)
    dies_in(monkeypatch, os, name, call)
    try:
        save(tmp_path, 2)
    except Killed:
        monkeypatch.undo()
        assert steps(tmp_path) in ([1], [1, 2])
        assert steps(tmp_path) == [1] or (checkpoint_path(tmp_path, 2) / "rank-0").read_text() == "state"
        save(tmp_path, 2)
    assert steps(tmp_path) == [1, 2]


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove_checkpoint(checkpoint_path(tmp_path, 7))
    path = save(tmp_path, 7)
    shutil.rmtree(path)
    remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []
