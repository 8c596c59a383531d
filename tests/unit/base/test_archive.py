"""Files of lines that are compressed read as they did before."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liver_slurm.base import archive
from liver_slurm.base.jsonl import LineReader, LineWriter, read_lines, read_tail


def _write(path: Path, count: int) -> list[dict[str, int]]:
    lines = [{"step": number, "square": number**2} for number in range(count)]
    path.write_text("".join(f'{{"step": {one["step"]}, "square": {one["square"]}}}\n' for one in lines))
    return lines


@given(count=st.integers(0, 60), kept=st.integers(1, 40))
def test_all_lines_are_read_once_and_in_order(count: int, kept: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("lines") / "metrics.jsonl"
    lines = _write(path, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "KEPT", kept)
        archive.compress(path)
        archive.compress(path)  # once is enough
    assert list(read_lines(path)) == lines
    assert LineReader(path).read() == lines
    assert read_tail(path) == lines[-kept:]
    assert archive.is_compressed(path) == (count > kept)
    assert archive.earlier_lines(path) == [] or count > kept


def test_it_takes_less_room_and_goes_on_growing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = _write(path, 20_000)
    before = archive.nbytes(path)
    archive.compress(path)
    assert archive.nbytes(path) < before / 2
    reader = LineReader(path)
    assert reader.read() == lines
    LineWriter(path).write({"step": 20_000})
    assert reader.read() == [{"step": 20_000}]
    assert list(read_lines(path)) == [*lines, {"step": 20_000}]


def test_what_was_compressed_is_read_though_the_rest_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = _write(path, archive.KEPT + 500)
    archive.compress(path)
    path.unlink()
    assert list(read_lines(path)) == lines[:500]


def test_a_crash_in_the_midst_doubles_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    lines = _write(path, archive.KEPT + 500)

    def crash(*_: object) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(archive.shutil, "copyfileobj", crash)
        with pytest.raises(OSError, match="no room"):
            archive.compress(path)
    assert archive.archive_of(path).exists()
    assert list(read_lines(path)) == lines
    archive.compress(path)
    assert list(read_lines(path)) == lines
    assert archive.is_compressed(path)
