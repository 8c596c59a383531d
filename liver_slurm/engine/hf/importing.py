"""A Hugging Face model's folder into a checkpoint of weights, which a run of any layout and precision starts from.

It holds one layer's tensor at a time. The checkpoint keeps the files' precision; masters are made of it when a run
starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from liver_slurm.base.errors import BadInput
from liver_slurm.base.files import replace_file
from liver_slurm.config.from_hf import CONFIG, read_hf_model
from liver_slurm.config.schema import ModelSection
from liver_slurm.engine.checkpoint_files import Box
from liver_slurm.engine.foreign import publish_import
from liver_slurm.engine.hf.side_files import copy_side_files
from liver_slurm.engine.hf.tensors import Unit, units
from liver_slurm.engine.hf.weights import DTYPES, Weights, opened
from liver_slurm.reshard.tensors import Piece
from liver_slurm.rundir.start import import_meta

_OUTPUT = "lm_head.weight"


@dataclass(frozen=True)
class Imported:
    """What was imported."""

    path: Path
    tensors: int
    """Of theirs."""
    parameters: int
    dtype: str
    window: int | None
    """Longest sequence that the model can be trained with; None: any."""
    files: list[str]
    """Copied along."""


def import_model(folder: Path, to: Path) -> Imported:
    """Write a checkpoint of a model's weights, with its ``config.json`` and its tokenizer; it is there whole or not.

    Args:
        to: the checkpoint, which must not be there.

    Raises:
        BadInput: the model cannot be expressed, or a file of it is missing or damaged.
        OSError: the checkpoint cannot be written.
    """
    found = read_hf_model(folder)
    model = ModelSection(**found.section)
    if model.num_attention_heads % (model.num_query_groups or 1):
        raise BadInput(f"{folder / CONFIG}: num_key_value_heads does not divide num_attention_heads")
    if model.vocab_size is None:
        raise BadInput(f"{folder / CONFIG}: it has no vocab_size")
    table = list(units(model, model.vocab_size, model.max_position_embeddings or 0))
    prefix = table[0].parts[0].name.partition(".")[0] + "."

    def beside(part: Path) -> list[str]:
        replace_file(part / CONFIG, (folder / CONFIG).read_bytes())
        return copy_side_files(folder, part)

    with opened(folder, prefix) as weights:
        _check(folder, weights, table, tied=model.share_embeddings_and_output_weights)
        kinds = {weights.dtype(one.name) for unit in table for one in unit.parts}
        dtype = DTYPES[kinds.pop()] if len(kinds) == 1 else torch.float32
        shapes = {unit.tensor: unit.whole for unit in table}
        boxes = _boxes(table, weights, dtype)
        files = publish_import(to, boxes, shapes, import_meta(model, found.window), beside=beside)
    parts = [one for unit in table for one in unit.parts]
    size = sum(math.prod(one.shape) for one in parts)
    return Imported(to, len(parts), size, str(dtype).removeprefix("torch."), found.window, files)


def _check(folder: Path, weights: Weights, table: Sequence[Unit], *, tied: bool) -> None:
    """Check that the files have the model's tensors and no others, before anything is written."""
    parts = {part.name: part for unit in table for part in unit.parts}
    there = weights.names()
    if tied and _OUTPUT in there:
        there.discard(_OUTPUT)
        vectors = table[0].parts[0].name
        if vectors in there and not torch.equal(weights.read(_OUTPUT), weights.read(vectors)):
            raise BadInput(f"{folder}: {_OUTPUT} is not the embedding, with which {CONFIG} ties it")
    if missing := sorted(parts.keys() - there):
        raise BadInput(f"{folder}: its files have no {missing[0]}{_more(missing)}")
    if strange := sorted(there - parts.keys()):
        raise BadInput(f"{folder}: by {CONFIG}, the model has no {strange[0]}{_more(strange)}, which its files have")
    for name, part in parts.items():
        if weights.shape(name) != part.shape:
            raise BadInput(f"{folder}: {name} has shape {weights.shape(name)}, by {CONFIG} it is {part.shape}")
        if weights.dtype(name) not in DTYPES:
            raise BadInput(f"{folder}: {name} is {weights.dtype(name)}; allowed: {', '.join(DTYPES)}")


def _more(names: Sequence[str]) -> str:
    return f", nor {len(names) - 1} more" if len(names) > 1 else ""


def _boxes(table: Sequence[Unit], weights: Weights, dtype: torch.dtype) -> Iterator[Box]:
    for unit in table:
        yield box_of(unit, unit.tensor, to_ours(unit, weights.read, dtype))


def to_ours(unit: Unit, read: Callable[[str], torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Make a unit of tensors of theirs; rows that pad the vocabulary are zero."""
    ours = torch.zeros(unit.shape, dtype=dtype)
    for part in unit.parts:
        theirs = read(part.name)
        theirs = theirs.T if part.turned else theirs
        for rows in part.rows:
            ours[rows.ours : rows.ours + rows.length] = theirs[rows.theirs : rows.theirs + rows.length]
    return ours


def box_of(unit: Unit, tensor: str, values: torch.Tensor) -> Box:
    """Make the box of a unit in a checkpoint's tensor, of its values."""
    shape = (*(1 for _ in unit.place), *unit.shape)
    return Piece(tensor, (*unit.place, *(0 for _ in unit.shape)), shape), values.view(shape)
