"""Data and tokenizers that a worker could not read are named before there is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.config.data_files import read_tokenizer, unreadable_data
from liver_slurm.engine.megatron.indexed_dataset import dataset_builder


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    builder = dataset_builder(tmp_path / "set.bin", 300)
    for length in (5, 3):
        builder.add_document(np.arange(length), [length])
    builder.data_file.close()
    builder.finalize(str(tmp_path / "set.idx"))
    return tmp_path / "set"


def test_a_folder_must_have_a_text_file(tmp_path: Path) -> None:
    assert unreadable_data(tmp_path) == "is a folder without a text file"
    (tmp_path / "empty.txt").touch()
    (tmp_path / "model.bin").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.txt").write_text("hidden")
    assert unreadable_data(tmp_path) == "is a folder without a text file"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.md").write_text("text")
    assert unreadable_data(tmp_path) is None


def test_a_whole_dataset_is_readable(prefix: Path) -> None:
    assert unreadable_data(prefix) is None


@pytest.mark.parametrize(
    ("suffix", "keep", "expected"),
    [
        (".idx", 0, "set.idx is no index of megatron's"),
        (".idx", 20, "set.idx is no index of megatron's"),
        (".idx", 50, "set.idx ends early"),
        (".bin", 0, "set.bin has 0 bytes, and set.idx lists"),
        (".bin", 15, "set.bin has 15 bytes, and set.idx lists 16"),
    ],
)
def test_a_damaged_dataset_is_named(prefix: Path, suffix: str, keep: int, expected: str) -> None:
    file = Path(f"{prefix}{suffix}")
    file.write_bytes(file.read_bytes()[:keep])
    reason = unreadable_data(prefix)
    assert reason is not None
    assert expected in reason


def test_an_index_of_another_version(prefix: Path) -> None:
    file = Path(f"{prefix}.idx")
    content = bytearray(file.read_bytes())
    content[9] = 7
    file.write_bytes(content)
    assert "set.idx has version 7" in str(unreadable_data(prefix))


@pytest.mark.parametrize("content", ["{}", "", json.dumps({"model": 1})])
def test_what_is_no_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BadInput, match="is not a tokenizer"):
        read_tokenizer(tmp_path / "tokenizer.json")
