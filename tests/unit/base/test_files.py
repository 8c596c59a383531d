"""Files are replaced as a whole, or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from liver_slurm.base.files import move_into_place, replace_file, replacing


def test_the_new_content_is_there_with_its_mode_and_nothing_else_is(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    replace_file(file, b"old")
    replace_file(file, b"new", 0o600)
    assert file.read_bytes() == b"new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_writer_that_fails_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    replace_file(file, b"old")

    def half() -> None:
        with replacing(file) as stream:
            stream.write(b"ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_content_is_on_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        done.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    replace_file(tmp_path / "a", b"content")
    assert done == ["file", "name", "folder"]
    done.clear()
    move_into_place(tmp_path / "a", tmp_path / "b")
    assert done == ["file", "name", "folder"]
    assert (tmp_path / "b").read_bytes() == b"content"


def test_of_many_writers_one_wins_and_readers_see_whole_files(tmp_path: Path) -> None:
    file = tmp_path / "a"
    contents = {bytes([letter]) * 10_000 for letter in b"abcdefgh"}
    replace_file(file, b"a" * 10_000)
    writers = [threading.Thread(target=replace_file, args=(file, content)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert file.read_bytes() in contents
    assert file.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [file]
