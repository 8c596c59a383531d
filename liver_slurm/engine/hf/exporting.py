"""A checkpoint's weights as a Hugging Face model's folder; one file's tensors are held at a time."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from liver_slurm.base.errors import BadInput
from liver_slurm.base.files import replace_file, sync_file
from liver_slurm.config.from_hf import CONFIG, TOKENIZER, read_hf_config, read_hf_model
from liver_slurm.config.hf_config import UnknownModelError, write_config
from liver_slurm.config.schema import JobConfig, ModelSection
from liver_slurm.engine.checkpoint_files import Box
from liver_slurm.engine.checkpoint_reading import read_boxes
from liver_slurm.engine.data.tokenizers import end_of_document, vocab_size
from liver_slurm.engine.foreign import best_sources, made_whole
from liver_slurm.engine.hf.importing import box_of
from liver_slurm.engine.hf.side_files import copy_side_files
from liver_slurm.engine.hf.tensors import Part, Unit, units
from liver_slurm.engine.hf.weights import INDEX, SINGLE, check_installed
from liver_slurm.rundir import resume
from liver_slurm.rundir.checkpoint_index import DamagedError

FILE_BYTES = 2 << 30
"""Bytes of tensors in a file at most, but for a tensor that is larger."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Exported:
    """What was exported."""

    path: Path
    tensors: int
    parameters: int
    weight_files: list[str]
    files: list[str]
    """Copied along."""


def export_model(
    checkpoint: Path,
    config: JobConfig,
    to: Path,
    like: Path | None,
    precision: str,
    file_bytes: int = FILE_BYTES,
    averages: bool = False,
) -> Exported:
    """Write a model's folder from a checkpoint's masters, or their moving averages; it is there whole or not.

    Args:
        config: of the checkpoint's run.
        to: the folder, which must not be there.
        like: folder of the same model, whose ``config.json`` and tokenizer are taken; None: ``config.json`` is made,
            and the tokenizer is the job's.
        precision: ``fp32`` or ``bf16``.

    Raises:
        BadInput: no family of transformers' is this model, or ``like`` is another, or the checkpoint is damaged, or has
            no averages.
        OSError: the folder cannot be written.
    """
    check_installed()
    vocabulary = vocab_size(config.model.vocab_size, config.data.tokenizer)
    config = replace(config, model=replace(config.model, vocab_size=vocabulary))
    document = _config(config, like, PRECISIONS[precision])
    positions = config.model.max_position_embeddings or config.train.seq_length
    table = list(units(config.model, vocabulary, positions))
    sources = best_sources(checkpoint, {unit.tensor for unit in table}, averages)
    with made_whole(to) as part:
        names = _write_weights(checkpoint, table, sources, part, PRECISIONS[precision], file_bytes)
        files = _side_files(config, like, part)
        replace_file(part / CONFIG, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    parts = [one for unit in table for one in unit.parts]
    return Exported(to, len(parts), sum(math.prod(one.shape) for one in parts), names, files)


def _config(config: JobConfig, like: Path | None, dtype: torch.dtype) -> dict[str, Any]:
    """Make the ``config.json``: that of ``like``, which must be the same model, or one of the section ``[model]``."""
    try:
        end = end_of_document(config.data)
        document = write_config(config.model, config.model.vocab_size or 0, config.train.seq_length, end)
    except UnknownModelError as error:
        raise BadInput(f"it cannot be exported: {error}") from None
    if like is not None:
        other = JobConfig(model=ModelSection(**read_hf_model(like).section))
        if different := resume.other_model(config, other, f"in {like / CONFIG}"):
            raise BadInput("\n".join(different))
        document = read_hf_config(like)
    key = "dtype" if "dtype" in document else "torch_dtype"
    return {**document, key: str(dtype).removeprefix("torch.")}


def _write_weights(
    checkpoint: Path, table: Sequence[Unit], sources: Mapping[str, str], part: Path, dtype: torch.dtype, most: int
) -> list[str]:
    """Write all files of weights; returns their names."""
    from safetensors.torch import save_file

    groups = list(_groups(table, dtype.itemsize, most))
    numbers = range(1, len(groups) + 1)
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in numbers]
    names = names if len(names) > 1 else [SINGLE]
    places: dict[str, str] = {}
    total = 0
    for name, group in zip(names, groups, strict=True):
        tensors = {}
        for unit, values in _read(checkpoint, group, sources):
            tensors.update({one.name: to_theirs(one, values).to(dtype) for one in unit.parts})
        save_file(tensors, part / name, metadata={"format": "pt"})
        sync_file(part / name)
        places.update(dict.fromkeys(tensors, name))
        total += sum(one.nbytes for one in tensors.values())
    if len(names) > 1:
        document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        replace_file(part / INDEX, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    return names


def _groups(table: Sequence[Unit], itemsize: int, most: int) -> Iterator[list[Unit]]:
    """Cut the table into the files' parts."""
    group: list[Unit] = []
    size = 0
    for unit in table:
        own = math.prod(unit.shape) * itemsize
        if group and size + own > most:
            yield group
            group, size = [], 0
        group.append(unit)
        size += own
    yield group


def _read(checkpoint: Path, group: Sequence[Unit], sources: Mapping[str, str]) -> list[tuple[Unit, torch.Tensor]]:
    found = [(unit, torch.empty(unit.shape)) for unit in group]
    boxes: list[Box] = [box_of(unit, sources[unit.tensor], values) for unit, values in found]
    try:
        read_boxes(checkpoint, boxes, {sources[unit.tensor]: unit.whole for unit in group})
    except DamagedError as error:
        raise BadInput(str(error)) from None
    return found


def to_theirs(part: Part, ours: torch.Tensor) -> torch.Tensor:
    """Take a tensor of theirs out of a unit."""
    theirs = torch.empty(part.shape[::-1] if part.turned else part.shape)
    for rows in part.rows:
        theirs[rows.theirs : rows.theirs + rows.length] = ours[rows.ours : rows.ours + rows.length]
    return theirs.T.contiguous() if part.turned else theirs


def _side_files(config: JobConfig, like: Path | None, part: Path) -> list[str]:
    if like is not None:
        return copy_side_files(like, part)
    if config.data.tokenizer == "byte":
        return []
    shutil.copyfile(config.data.tokenizer, part / TOKENIZER)
    sync_file(part / TOKENIZER)
    return [TOKENIZER]
