"""A checkpoint as Megatron-LM itself would have saved it, in its format torch_dist; a layer's tensor is held at a time.

Weights alone are what Megatron-LM calls a release: they begin a run there, at iteration 0. With the moments it is an
iteration's checkpoint, with which Megatron-LM goes on.
"""

from __future__ import annotations

import io
import itertools
import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from liver_slurm.base.errors import BadInput
from liver_slurm.base.files import replace_file, sync_folder
from liver_slurm.config.batch_sizes import samples_before
from liver_slurm.config.megatron_args import UnknownArgumentsError, write_args
from liver_slurm.config.schema import JobConfig
from liver_slurm.engine.checkpoint import PATIENCE
from liver_slurm.engine.checkpoint_files import Box, finish_folder, gather, write_share
from liver_slurm.engine.data.tokenizers import vocab_size
from liver_slurm.engine.foreign import best_sources, made_whole
from liver_slurm.engine.hf.importing import box_of
from liver_slurm.engine.hf.tensors import Unit
from liver_slurm.engine.torch_dist.common import COMMON
from liver_slurm.engine.torch_dist.folder import BACKEND, FORMAT, RELEASE, TRACKER, iteration_folder
from liver_slurm.engine.torch_dist.layers import LayerReader
from liver_slurm.engine.torch_dist.optimizer import optimizer_state, scheduler_state
from liver_slurm.engine.torch_dist.sources import spellings
from liver_slurm.engine.torch_dist.table import units_of
from liver_slurm.reshard.tensors import ADAM
from liver_slurm.rundir.checkpoint_index import Index, StoredBox
from liver_slurm.rundir.checkpoints import read_index, read_meta

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_NAME = "export"
_OBJECTS = "__1_0.distcp"
"""File of what is no tensor."""
_CONTENT = {
    "singleton_local_shards": False,
    "chained_optim_avoid_prefix": True,
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
}
"""What Megatron-LM is told of the names that tensors have here."""


@dataclass(frozen=True)
class Exported:
    """What was exported."""

    path: Path
    tensors: int
    parameters: int
    iteration: int | None
    """Whose checkpoint it is; None: it is a release."""
    args: dict[str, Any]
    """Of Megatron-LM's, those that say which model it is."""


@dataclass(frozen=True)
class _Kind:
    """Tensors of one kind: weights, masters, or one of the moments."""

    prefix: str
    """What their names begin with."""
    sources: Mapping[str, str]
    """Of each weight the checkpoint's tensor."""
    dtype: torch.dtype


def export_model(
    checkpoint: Path, config: JobConfig, to: Path, precision: str, averages: bool = False, optimizer: bool = False
) -> Exported:
    """Write a folder that Megatron-LM's ``--load`` takes; it is there whole or not.

    Args:
        config: of the checkpoint's run.
        to: the folder, which must not be there.
        precision: of the weights, ``fp32`` or ``bf16``.
        averages: write their moving averages in the place of the weights.
        optimizer: write masters and moments, too.

    Raises:
        BadInput: Megatron-LM cannot express this model or its optimizer, or the checkpoint is damaged, or lacks what is
            asked for.
        OSError: the folder cannot be written.
    """
    tokens = vocab_size(config.model.vocab_size, config.data.tokenizer)
    config = replace(config, model=replace(config.model, vocab_size=tokens))
    try:
        args = write_args(config.model, tokens, config.train.seq_length)
    except UnknownArgumentsError as error:
        raise BadInput(f"it cannot be exported: {error}") from None
    units = units_of(config)
    names = {unit.tensor for unit in units}
    sources = best_sources(checkpoint, names, averages)
    kinds = [_Kind("", sources, PRECISIONS[precision])]
    common = _common(config, args, precision)
    iteration = None
    if optimizer:
        kinds += _optimizer_kinds(checkpoint, config, sources)
        meta = read_meta(checkpoint)
        iteration = int(meta["step"])
        common |= {
            "iteration": iteration,
            "optimizer": optimizer_state(config.train, int(meta["adam_step"])),
            "opt_param_scheduler": scheduler_state(config, iteration),
        }
        vars(common["args"]).update(
            iteration=iteration,
            consumed_train_samples=samples_before(config.train, iteration),
            no_save_optim=False,
        )
    with made_whole(to) as part:
        _write(checkpoint, part / iteration_folder(iteration), units, kinds, common)
        replace_file(part / TRACKER, (RELEASE if iteration is None else str(iteration)).encode())
    whole = {unit.tensor: unit.whole for unit in units}
    return Exported(to, len(names), sum(map(math.prod, whole.values())), iteration, args)


def _optimizer_kinds(checkpoint: Path, config: JobConfig, sources: Mapping[str, str]) -> list[_Kind]:
    """Return the kinds of tensors that Megatron-LM's distributed optimizer has.

    Raises:
        BadInput: it has none such.
    """
    if config.model.num_moe_experts is not None:
        raise BadInput(
            "--optimizer is for models without experts, whose optimizers are one or two there, by their parallelism; "
            "allowed: weights alone"
        )
    if config.train.optimizer != "adam":
        raise BadInput(f"--optimizer is for train.optimizer adam, not {config.train.optimizer}; allowed: weights alone")
    index = read_index(checkpoint)
    if lacking := [name for name in sources for moment in ADAM if f"{name}@{moment}" not in index]:
        raise BadInput(f"{checkpoint} has no moments of {lacking[0]}; allowed: weights alone")
    kinds = {"param": sources, **{one: {name: f"{name}@{one}" for name in sources} for one in ADAM}}
    return [_Kind(f"optimizer.state.{name}.", found, torch.float32) for name, found in kinds.items()]


def _common(config: JobConfig, args: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Return what of a release is no tensor."""
    run = {
        "iteration": 0,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
        "skipped_train_samples": 0,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "world_size": 1,
        "data_parallel_size": 1,
        "ckpt_format": FORMAT,
        "use_dist_ckpt": True,
        "use_distributed_optimizer": True,
        "no_save_optim": True,
        "no_save_rng": True,
        "hidden_dropout": config.model.hidden_dropout,
        "attention_dropout": config.model.attention_dropout,
        "fp16": False,
        "bf16": precision == "bf16",
        "params_dtype": PRECISIONS[precision],
    }
    return {
        "args": Namespace(**args, **run),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "num_floating_point_operations_so_far": 0,
        "content_metadata": _CONTENT,
    }


def _write(
    checkpoint: Path, folder: Path, units: Sequence[Unit], kinds: Sequence[_Kind], common: Mapping[str, Any]
) -> None:
    reader = LayerReader(checkpoint, read_index(checkpoint))
    shapes = {f"{kind.prefix}{unit.tensor}": unit.whole for kind in kinds for unit in units}
    write_share(folder, 0, (box for kind in kinds for box in _boxes(reader, units, kind)), shapes)
    index = gather(folder, {0: _NAME}, PATIENCE)
    index |= _other_spellings(index)
    state = _saved([torch.empty(0, dtype=torch.uint8)])
    replace_file(folder / _OBJECTS, state)
    place = StoredBox((), (), _OBJECTS, 0, len(state), "")
    replace_file(folder / COMMON, _saved(dict(common)))
    finish_folder(folder, index, [0], dict.fromkeys(_extra_states(units), place))
    backend = {
        "sharded_backend": FORMAT,
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    replace_file(folder / BACKEND, msgspec.json.encode(backend))
    sync_folder(folder)


def _boxes(reader: LayerReader, units: Sequence[Unit], kind: _Kind) -> Iterator[Box]:
    for _, group in itertools.groupby(units, key=lambda unit: (unit.tensor, unit.layer)):
        found = [(unit, torch.empty(unit.shape)) for unit in group]
        wanted = [box_of(unit, kind.sources[unit.tensor], values) for unit, values in found]
        reader.fill(wanted, {kind.sources[unit.tensor]: unit.whole for unit, _ in found})
        for unit, values in found:
            own = torch.float32 if unit.tensor.endswith(".expert_bias") else kind.dtype
            yield box_of(unit, f"{kind.prefix}{unit.tensor}", values.to(own))


def _other_spellings(index: Index) -> Index:
    """Return the names that norms have where they are no part of a linear layer, as before experts they never are."""
    return {other: stored for name, stored in index.items() for other in spellings(name) if other not in index}


def _extra_states(units: Sequence[Unit]) -> Iterator[str]:
    """Yield the names of the state that modules have besides, for fp8, in Transformer Engine norms too: it is empty.

    Names that nobody asks for do no harm.
    """
    for unit in units:
        place = ".".join(map(str, unit.place or (0,)))
        shape = ".".join(map(str, unit.whole[: len(unit.place)] or (1,)))
        for name in spellings(unit.tensor):
            module, _, last = name.rpartition(".")
            if last == "weight":
                yield f"{module}._extra_state/shard_{place}_{shape}"
            if module.endswith("linear_qkv"):
                yield f"{module.removesuffix('linear_qkv')}core_attention._extra_state/shard_{place}_{shape}"


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
