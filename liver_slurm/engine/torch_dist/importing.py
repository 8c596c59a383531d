"""A checkpoint of Megatron-LM's into one that a run of any layout and precision starts from.

It holds a layer's tensor at a time. Weights keep their precision; with moments, they are the optimizer's own in fp32.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from liver_slurm.base.errors import BadInput
from liver_slurm.config.megatron_args import UnknownArgumentsError, read_args
from liver_slurm.config.schema import JobConfig, ModelSection, TrainSection
from liver_slurm.engine.data.tokenizers import vocab_size
from liver_slurm.engine.foreign import publish_import
from liver_slurm.engine.torch_dist.common import Common, read_common
from liver_slurm.engine.torch_dist.folder import find_checkpoint, read_places
from liver_slurm.engine.torch_dist.reading import ALONE, MOMENTS, Reader
from liver_slurm.engine.torch_dist.sources import VOCABULARY
from liver_slurm.engine.torch_dist.table import units_of
from liver_slurm.rundir.checkpoint_index import Index
from liver_slurm.rundir.start import import_meta

_CHAINED = re.compile(r"chained_\d+\.")
"""What megatron-core writes before names of the state of one of several optimizers."""


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
    reader = Reader(path, index, units_of(config), tokens, "the job" if job is not None else "its arguments")
    reader.check_weights()
    kinds = {"": reader.weight_kind(optimizer)}
    if optimizer:
        kinds |= MOMENTS
        for kind in kinds.values():
            reader.check_kind(kind)
    steps = common.steps if optimizer and common is not None else None
    if optimizer and steps is None:
        raise BadInput(f"{path} does not say how many steps its moments have gone through; {ALONE}")
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
