"""A checkpoint of Megatron-LM's into one that a run of any layout and precision starts from.

It holds a layer's tensor at a time. Weights keep their precision; with moments, they are the optimizer's own in fp32.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from liver_slurm.base.errors import BadInput
from liver_slurm.config.megatron_args import UnknownArgumentsError, read_args
from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.engine.checkpoint_files import Box
from liver_slurm.engine.data.tokenizers import vocab_size
from liver_slurm.engine.foreign import publish_import
from liver_slurm.engine.hf.importing import box_of
from liver_slurm.engine.hf.tensors import Shape, Unit
from liver_slurm.engine.torch_dist.common import Common, read_common
from liver_slurm.engine.torch_dist.folder import find_checkpoint, read_places
from liver_slurm.engine.torch_dist.layers import LayerReader
from liver_slurm.engine.torch_dist.sources import VOCABULARY, Source, find_sources, sources_of, spellings
from liver_slurm.engine.torch_dist.table import units_of
from liver_slurm.reshard.tensors import ADAM, Piece
from liver_slurm.rundir.checkpoint_index import Index
from liver_slurm.rundir.start import import_meta

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What weights and moments may be stored in."""
_CHAINED = re.compile(r"chained_\d+\.")
"""What megatron-core writes before names of the state of one of several optimizers."""
_OPTIMIZER = "optimizer."
_STATE = f"{_OPTIMIZER}state."
_MASTERS = tuple(f"{_STATE}{name}." for name in ("fp32_param", "param"))
_MOMENTS = {f"@{moment}": f"{_STATE}{moment}." for moment in ADAM}
_NO_MOMENTS = ".router.expert_bias"
"""End of the names of tensors that no optimizer of Megatron-LM's has."""
_ALONE = (
    "leave out --optimizer, and weights are taken alone, or have Megatron-LM save them with "
    "--dist-ckpt-optim-fully-reshardable"
)


@dataclass(frozen=True)
class Imported:
    """What was imported."""

    path: Path
    model: ModelSection
    tensors: int
    parameters: int
    dtype: str
    steps: int | None
    """That the moments have gone through; None: there are none."""


def import_model(
    folder: Path, to: Path, job: JobConfig | None, vocabulary: int | None = None, optimizer: bool = False
) -> Imported:
    """Write a checkpoint of a model of Megatron-LM's; it is there whole or not.

    Args:
        folder: what Megatron-LM's ``--save`` named, or the folder of an iteration in it.
        to: the checkpoint, which must not be there.
        job: says which model it is; None: the arguments in the checkpoint do.
        vocabulary: tokens of the model; None: the job's, or all rows of the embedding.
        optimizer: take the moments too.

    Raises:
        BadInput: it is no such checkpoint, is damaged, is of another model or one that cannot be expressed, would run
            something, or has no moments that can be taken.
        OSError: the checkpoint cannot be written.
    """
    path = find_checkpoint(folder)
    tensors, objects = read_places(path)
    index = {_CHAINED.sub("", name, count=1): tensor for name, tensor in tensors.items()}
    common = read_common(path, objects) if job is None or optimizer else None
    config = _config(path, index, job, common, vocabulary)
    tokens = config.model.vocab_size or 0
    reader = _Reader(path, index, units_of(config), tokens, "the job" if job is not None else "its arguments")
    reader.check_weights()
    kinds = {"": reader.weight_kind(optimizer)}
    if optimizer:
        kinds |= _MOMENTS
        for kind in kinds.values():
            reader.check_kind(kind)
    steps = common.steps if optimizer and common is not None else None
    if optimizer and steps is None:
        raise BadInput(f"{path} does not say how many steps its moments have gone through; {_ALONE}")
    shapes = {f"{unit.tensor}{ours}": unit.whole for unit in reader.units for ours in kinds}
    boxes = (box for ours, kind in kinds.items() for box in reader.boxes(ours, kind))
    publish_import(to, boxes, shapes, import_meta(config.model, None, optimizer), steps or 0)
    whole = {unit.tensor: unit.whole for unit in reader.units}
    dtypes = {reader.dtype(unit, kinds[""]) for unit in reader.units}
    return Imported(to, config.model, len(whole), sum(map(math.prod, whole.values())), ", ".join(sorted(dtypes)), steps)


def _config(
    path: Path, index: Index, job: JobConfig | None, common: Common | None, vocabulary: int | None
) -> JobConfig:
    """Say which model it is, as a job."""
    if VOCABULARY[0] not in index:
        raise BadInput(f"{path} is of no GPT of Megatron-LM's: it has no {VOCABULARY[0]}")
    if job is not None:
        tokens = vocabulary or vocab_size(job.model.vocab_size, job.data.tokenizer)
        config = replace(job, model=replace(job.model, vocab_size=tokens))
    else:
        if common is None or common.args is None:
            raise BadInput(f"{path} has no arguments: --job JOB.toml says which model it is")
        try:
            section = read_args(common.args, vocabulary or index[VOCABULARY[0]].shape[0])
        except (UnknownArgumentsError, RecursionError) as error:
            raise BadInput(f"{path}: {error}") from None
        model = ModelSection(**section)
        length = model.max_position_embeddings or 1
        config = JobConfig(model=model, train=TrainSection(steps=1, seq_length=length, global_batch_size=1))
    _check_sizes(path, index, config)
    return config


def _check_sizes(path: Path, index: Index, config: JobConfig) -> None:
    """Refuse a model that is not worth building on the meta device."""
    model = config.model
    if model.provider is not None:
        raise BadInput("model.provider is not for `import megatron`; allowed: the built-in model")
    boxes = sum(len(tensor.boxes) for tensor in index.values())
    axis = max(size for tensor in index.values() for size in (*tensor.shape, 1))
    for key, size, most in (("num_layers", model.num_layers, boxes), ("num_moe_experts", model.num_moe_experts, axis)):
        if size is not None and size > most:
            raise BadInput(f"{path} is of another model: model.{key} is {size}, for which it has too few tensors")


class _Reader:
    """Tensors of theirs as units of ours."""

    def __init__(self, path: Path, index: Index, units: Sequence[Unit], tokens: int, by: str) -> None:
        """``by``: who says which model it is, for people."""
        self.units = units
        self._path, self._index, self._tokens, self._by = path, index, tokens, by
        self._files = LayerReader(path, index)

    def check_weights(self) -> None:
        """Check that there are the model's weights and no others.

        Raises:
            BadInput: there are not.
        """
        self.check_kind("")
        known = {
            source.tensor
            for unit in self.units
            for name in spellings(unit.tensor)
            for source in sources_of(self._index, name, unit)
        }
        weights = (name for name in self._index if not name.startswith((_OPTIMIZER, "rng_state", "rerun_state")))
        if strange := sorted(set(weights) - known):
            more = f", nor {len(strange) - 1} more" if len(strange) > 1 else ""
            raise BadInput(f"{self._path}: by {self._by}, the model has no {strange[0]}{more}")

    def weight_kind(self, masters: bool) -> str:
        """Return what the names of the best weights begin with: those of masters, if they are wanted and there.

        Raises:
            BadInput: there are no moments, and no masters of weights that are rounded.
        """
        if not masters:
            return ""
        if not any(name.startswith(tuple(_MOMENTS.values())) for name in self._index):
            raise BadInput(f"{self._path} has no moments that any layout can read; {_ALONE}")
        for kind in _MASTERS:
            if any(name.startswith(kind) for name in self._index):
                return kind
        if rounded := [unit.tensor for unit in self.units if self.dtype(unit, "") != "float32"]:
            raise BadInput(f"{self._path} has no fp32 weights of {rounded[0]} in its optimizer's state; {_ALONE}")
        return ""

    def check_kind(self, kind: str) -> None:
        """Check that there is what is wanted of each unit, in the right shape.

        Raises:
            BadInput: there is not.
        """
        what_to_do = f"; {_ALONE}" if kind else ""
        for unit in self.units:
            found = self._sources(unit, kind)
            if not found and not _is_zero(unit, kind):
                raise BadInput(
                    f"{self._path} has no {kind}{unit.tensor}, which the model has by {self._by}{what_to_do}"
                )
            for source in found:
                stored, shape = self._index[source.tensor], self._shape(unit, source)
                spare = stored.shape[0] - shape[0] if unit.tensor in VOCABULARY and stored.shape else 0
                if stored.shape != (shape[0] + max(spare, 0), *shape[1:]):
                    raise BadInput(
                        f"{self._path}: {source.tensor} has shape {stored.shape}, by {self._by} it is "
                        f"{shape}{what_to_do}"
                    )
                if stored.dtype not in DTYPES:
                    raise BadInput(
                        f"{self._path}: {source.tensor} is {stored.dtype}; allowed: {', '.join(DTYPES)}{what_to_do}"
                    )

    def _sources(self, unit: Unit, kind: str) -> list[Source]:
        if _is_zero(unit, kind):
            return []
        found = find_sources(self._index, unit, "" if unit.tensor.endswith(_NO_MOMENTS) else kind)
        if unit.tensor in VOCABULARY:
            found = [source._replace(rows=self._tokens) for source in found]
        return found

    def _shape(self, unit: Unit, source: Source) -> Shape:
        """Return the shape that a tensor of theirs has by the model."""
        before = len(unit.place)
        return (*unit.whole[before - len(source.place) : before], source.rows, *unit.shape[1:])

    def dtype(self, unit: Unit, kind: str) -> str:
        """Name the precision that a unit is stored in; fp32 of what is not there."""
        found = self._sources(unit, kind)
        return self._index[found[0].tensor].dtype if found else "float32"

    def boxes(self, ours: str, kind: str) -> Iterator[Box]:
        """Read all units, a layer's tensor at a time.

        Args:
            ours: what our names end with.

        Raises:
            BadInput: a file is damaged.
        """
        for _, group in itertools.groupby(self.units, key=lambda unit: (unit.tensor, unit.layer)):
            read: list[tuple[Unit, torch.Tensor]] = []
            wanted: list[Box] = []
            for unit in group:
                values = torch.zeros(unit.shape, dtype=DTYPES[self.dtype(unit, kind)])
                read.append((unit, values))
                wanted += [_box(source, values) for source in self._sources(unit, kind)]
            self._files.fill(wanted)
            yield from (box_of(unit, f"{unit.tensor}{ours}", values) for unit, values in read)


def _is_zero(unit: Unit, kind: str) -> bool:
    """Return whether these are the moments of what no optimizer of Megatron-LM's has."""
    return unit.tensor.endswith(_NO_MOMENTS) and kind in _MOMENTS.values()


def _box(source: Source, values: torch.Tensor) -> Box:
    view = values[source.first : source.first + source.rows]
    shape = (*(1 for _ in source.place), *view.shape)
    return Piece(source.tensor, (*source.place, *(0 for _ in view.shape)), shape), view.view(shape)
