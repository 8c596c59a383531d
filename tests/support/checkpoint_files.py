"""What is in a checkpoint, whole, whatever layout wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from liver_slurm.rundir.checkpoint_index import StoredBox, StoredTensor, digest_of, write_index
from liver_slurm.rundir.checkpoints import checkpoint_path, list_checkpoints, part_path, publish_checkpoint


def small_checkpoint(folder: Path, step: int, text: str = "state", **counters: int) -> Path:
    """Write a checkpoint with one file, ``rank-0``, that holds the text; no torch can load it.

    Without ``counters`` it says no more of its steps than those of older versions do.
    """
    path, content = checkpoint_path(folder, step), text.encode()
    part = part_path(path)
    part.mkdir(parents=True, exist_ok=True)
    (part / "rank-0").write_bytes(content)
    box = StoredBox((0,), (1,), "rank-0", 0, len(content), digest_of(content))
    index = write_index(part, {"weight": StoredTensor("float32", (1,), [box])})
    publish_checkpoint(path, part, {"step": step, **counters}, index)
    return path


def newest(folder: Path) -> Path:
    """The newest checkpoint in a run's folder of them."""
    return list_checkpoints(folder)[-1]


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint in its global shape: weights, masters, Adam's moments; a box that no rank wrote
    reads as NaN."""
    reader = dcp.FileSystemReader(checkpoint)
    found = {
        name: torch.full(tuple(entry.size), float("nan"), dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def counters(checkpoint: Path) -> dict[str, int]:
    """Step and Adam's counter."""
    meta = json.loads((checkpoint / "liver.json").read_text())
    return {key: int(meta[key]) for key in ("step", "adam_step")}


def assert_same(one: Path, other: Path) -> None:
    """Both checkpoints hold the same counters and the same bits."""
    assert counters(one) == counters(other)
    found, expected = tensors(one), tensors(other)
    assert found.keys() == expected.keys()
    assert len(found) > 0
    different = [name for name in expected if not _same_bits(found[name], expected[name])]
    assert not different, different


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    same_kind = one.dtype == other.dtype and one.shape == other.shape
    return same_kind and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
