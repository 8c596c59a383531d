"""A checkpoint that has its name is complete, whenever the process that writes or removes it dies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import small_checkpoint as save

from liver_slurm.base.errors import BadInput
from liver_slurm.rundir.checkpoint_index import DamagedError, StoredBox, StoredTensor, digest_of, write_index
from liver_slurm.rundir.checkpoints import (
    checkpoint_path,
    checkpoint_step,
    copy_checkpoint,
    list_checkpoints,
    part_path,
    prune_checkpoints,
    publish_checkpoint,
    read_meta,
    sound_checkpoints,
    verify,
)


def steps(folder: Path) -> list[int]:
    return [checkpoint_step(path) for path in list_checkpoints(folder)]


def test_only_what_is_complete_counts(tmp_path: Path) -> None:
    assert steps(tmp_path) == []
    for step in (100, 9, 123_456_789):
        save(tmp_path, step)
    part_path(checkpoint_path(tmp_path, 300)).mkdir()
    (tmp_path / "step-00000200").mkdir()
    (tmp_path / "step-00000400.old").mkdir()
    (tmp_path / "step-00000400.old" / "liver.json").write_text("{}")
    assert steps(tmp_path) == [9, 100, 123_456_789], "by number, not by name"
    assert read_meta(checkpoint_path(tmp_path, 9))["step"] == 9
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
    assert prune_checkpoints(tmp_path, 2, newest=5) == ""
    assert steps(tmp_path) == [4, 5]
    prune_checkpoints(tmp_path, 7, newest=5)
    assert steps(tmp_path) == [4, 5]
    prune_checkpoints(tmp_path, 0, newest=5)
    assert steps(tmp_path) == [4, 5]


def test_pruning_keeps_the_best(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    assert prune_checkpoints(tmp_path, 2, newest=5, best=2) == ""
    assert steps(tmp_path) == [2, 4, 5]
    prune_checkpoints(tmp_path, 1, newest=5, best=5)
    assert steps(tmp_path) == [5]


def test_pruning_leaves_what_is_newer_than_what_was_just_written(tmp_path: Path) -> None:
    for step in (90, 100, 200):  # 200 is of a time that the run has gone back from
        save(tmp_path, step)
    save(tmp_path, 110)
    prune_checkpoints(tmp_path, 1, newest=110)
    assert steps(tmp_path) == [110, 200]


def test_one_that_cannot_be_removed_is_named_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    real = os.rmdir

    def busy(path: Any, **options: Any) -> None:
        if "00000001" in os.fspath(path):
            raise OSError(16, "Device or resource busy")
        real(path, **options)

    monkeypatch.setattr(os, "rmdir", busy)
    assert "Device or resource busy" in prune_checkpoints(tmp_path, 1, newest=3)
    assert steps(tmp_path) == [3], "the others are removed"
    monkeypatch.undo()
    assert prune_checkpoints(tmp_path, 1, newest=3) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_parts_of_older_attempts_are_removed(tmp_path: Path) -> None:
    for step in (2, 5):
        part_path(checkpoint_path(tmp_path, step), "g1-0").mkdir()
    part_path(checkpoint_path(tmp_path, 1)).mkdir()
    prune_checkpoints(tmp_path, 1, newest=4)
    assert [path.name for path in tmp_path.iterdir()] == [".step-00000005.g1-0.part"]


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
        prune_checkpoints(tmp_path, 1, newest=3)
    except Killed:
        monkeypatch.undo()
        for path in list_checkpoints(tmp_path):
            assert sorted(file.name for file in path.iterdir()) == before[path], "what counts is whole"
        prune_checkpoints(tmp_path, 1, newest=3)
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


# ---- verification ----------------------------------------------------------------------------------------------------


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


@pytest.mark.parametrize("kind", [empty, cut, flip, Path.unlink])
@pytest.mark.parametrize("name", ["rank-0", "index.msgpack", "liver.json"])
def test_whatever_is_damaged_the_next_older_one_is_taken(tmp_path: Path, name: str, kind: Callable[..., None]) -> None:
    # LS-25
    older, newest = save(tmp_path, 1), save(tmp_path, 2)
    kind(newest / name)
    refused: dict[Path, str] = {}
    assert list(sound_checkpoints([tmp_path], refused)) == [older]
    if kind is Path.unlink and name == "liver.json":
        assert not refused, "one without it is no checkpoint"
    else:
        assert list(refused) == [newest]
        assert name in refused[newest], "the file is named"


def test_lengths_are_looked_at_where_contents_are_not(tmp_path: Path) -> None:
    flipped, short = save(tmp_path, 1), save(tmp_path, 2)
    flip(flipped / "rank-0")
    cut(short / "rank-0")
    verify(flipped, contents=False)
    with pytest.raises(DamagedError, match=r"rank-0 is cut short: it has 4 bytes where 5 were written"):
        verify(short, contents=False)


@pytest.mark.parametrize("boxes", [[], [((0,), (1,)), ((0,), (1,))], [((0,), (3,))]])
def test_what_is_not_stored_exactly_once_is_not_whole(tmp_path: Path, boxes: list[Any]) -> None:
    path = checkpoint_path(tmp_path, 3)
    part_path(path).mkdir()
    (part_path(path) / "f").write_bytes(b"x")
    stored = [StoredBox(offset, shape, "f", 0, 1, digest_of(b"x")) for offset, shape in boxes]
    digest = write_index(part_path(path), {"w": StoredTensor("float32", (2,), stored)})
    publish_checkpoint(path, part_path(path), {"step": 3}, digest)
    with pytest.raises(DamagedError, match="is not whole: "):
        verify(path)


def test_a_file_elsewhere_is_not_read(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 3)
    part_path(path).mkdir()
    box = StoredBox((0,), (1,), "../../secret", 0, 1, "")
    digest = write_index(part_path(path), {"w": StoredTensor("float32", (1,), [box])})
    publish_checkpoint(path, part_path(path), {"step": 3}, digest)
    with pytest.raises(DamagedError, match=r"it names a file '\.\./\.\./secret'"):
        verify(path)


@pytest.mark.parametrize("name", ["", "rank-0"])
def test_what_others_can_write_is_not_used(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    (path / name).chmod(0o777)
    with pytest.raises(DamagedError, match="can be written by others"):
        verify(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", "rank-0"])
def test_what_belongs_to_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = save(tmp_path, 1)
    os.chown(path / name, 12345, -1)
    with pytest.raises(DamagedError, match="belongs to user 12345"):
        verify(path)


# ---- copies --------------------------------------------------------------------------------------------------------


def test_a_copy_is_whole_and_old_ones_go(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there" / "run"
    for step in (1, 2, 3):
        assert copy_checkpoint(save(here, step), there, keep=2) == ""
    assert steps(there) == [2, 3]
    verify(checkpoint_path(there, 3))
    copy_checkpoint(checkpoint_path(here, 3), there, keep=2)
    assert sorted(path.name for path in there.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_damaged_one_is_not_copied(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    path = save(here, 1)
    flip(path / "rank-0")
    with pytest.raises(DamagedError, match="is damaged"):
        copy_checkpoint(path, there, keep=2)
    assert list(there.iterdir()) == []


def test_the_newest_sound_one_is_taken_from_wherever_it_is(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for step in (1, 2, 3):
        copy_checkpoint(save(here, step), there, keep=0)
    flip(here / "step-00000003" / "rank-0")
    refused: dict[Path, str] = {}
    found = list(sound_checkpoints([here, there], refused))
    assert found[:2] == [there / "step-00000003", here / "step-00000002"]
    assert list(refused) == [here / "step-00000003"]
