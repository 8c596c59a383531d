"""Shard specs of each rank of a world, read from megatron's own metadata of models on the meta device.

A :class:`~liver_slurm.reshard.shard_spec.ShardSpec` comes from ``model.sharded_state_dict()``, whose entries say where
in the global tensor a parameter, or a part of it, lies. Building a shard on the meta device takes milliseconds and no
memory, so every rank knows every other rank's pieces without asking.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from liver_slurm.base.errors import BadInput, PlanError
from liver_slurm.config.schema import JobConfig, TrainSection
from liver_slurm.config.shapes import expert_weights, stage_layers
from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.expert_layer import EXPERT_BIAS
from liver_slurm.engine.megatron.model import build_model, named_parameters, unwrap
from liver_slurm.parallel import c10d
from liver_slurm.parallel.layout import Axis, Layout, ShardKey
from liver_slurm.reshard.shard_spec import BoxSpec, GroupSpec, ParamSpec, ShardSpec, WorldSpec
from liver_slurm.reshard.tensors import ITEMSIZE, moment_dtype_of, moments_of

with compat.imports():
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
    from megatron.core.optimizer import get_standard_config_overrides
    from megatron.core.optimizer.optimizer_config import OptimizerConfig, ParamKey, ParamPredicate
    from megatron.core.process_groups_config import ProcessGroupCollection


class _Sizes:
    """Stand-in for a process group where only its size and a rank in it are used."""

    def __init__(self, size: int, rank: int) -> None:
        self._size, self._rank = size, rank

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank


_ALONE = Layout(1, 1, 1)
_NO_PARAMETER = "is state of the model but no parameter; only parameters can be moved"
compat.fix_replica_of_embeddings()


def world_spec(config: JobConfig, layout: Layout) -> WorldSpec:
    """Return the state of every rank of a world of this layout; cached.

    Raises:
        BadInput: a pattern of ``train.no_weight_decay`` is the name of no tensor.
        PlanError: the model has state that its ``sharded_state_dict`` does not describe.
        ValueError: megatron-core refuses the layout for this model.
    """
    return _world_spec(msgspec.json.encode(config), layout)


def gradient_bucket(config: JobConfig, layout: Layout) -> int | None:
    """Return megatron's own default on GPUs, None on CPUs, where gloo would take the backward pass's cores."""
    on_gpus = any(component.gpus_per_task for component in config.live.component)
    return max(40_000_000, 1_000_000 * layout.dense_replicas) if on_gpus and layout.dense_replicas > 1 else None


def parameter_count(config: JobConfig) -> int:
    """Return the parameters of the job's model, tied ones once; the same in every layout."""
    model, spare = config.model, 0
    if model.num_moe_experts is not None and model.provider is None:
        # Thousands of experts take seconds to build, and all but a few are counted without.
        few = min(model.moe_router_topk, model.num_moe_experts)
        row = model.hidden_size + model.moe_router_enable_expert_bias  # of the router
        spare = model.num_layers * (model.num_moe_experts - few) * (expert_weights(model) + row)
        config = replace(config, model=replace(model, num_moe_experts=few))
    return spare + sum(math.prod(weight.shape) for weight in world_spec(config, _ALONE).weights.values())


@lru_cache(maxsize=32)
def _world_spec(encoded: bytes, layout: Layout) -> WorldSpec:
    config = msgspec.json.decode(encoded, type=JobConfig)
    # Replicas of this product's own model are alike, however many there are.
    shards = _shards(encoded, layout.unreplicated if config.model.provider is None else layout)
    tensors = {box.tensor for shard in shards.values() for param in shard.params for box in param.boxes}
    for pattern in config.train.no_weight_decay:
        if not any(fnmatchcase(tensor, pattern) for tensor in tensors):
            raise BadInput(
                f"train.no_weight_decay: {json.dumps(pattern)} is the name of no tensor of the model; allowed: "
                f"patterns of names such as {min(tensors)}, all of which `liver-slurm plan --json` lists"
            )
    return WorldSpec(
        layout,
        shards,
        config.train.distributed_optimizer,
        config.train.precision,
        gradient_bucket(config, layout),
        moment_dtype=moment_dtype_of(config.train),
    )


@lru_cache(maxsize=32)
def _shards(encoded: bytes, layout: Layout) -> dict[ShardKey, ShardSpec]:
    """Return all shards of a layout."""
    config = msgspec.json.decode(encoded, type=JobConfig)
    shards: dict[ShardKey, ShardSpec] = {}
    for pp in range(layout.pp):
        # Stages between the first and the last differ only in the numbers of their layers, as long as the model is this
        # product's own: a large world's shards are then known in the time of three stages.
        alike = 1 < pp < layout.pp - 1 and config.model.provider is None and not _shape_fields(config)
        for part in range(layout.parts):
            shards[part, pp] = (
                _next_layers(shards[part, pp - 1], config.model.num_layers, layout)
                if alike
                else shard_spec(config, layout, part, pp)
            )
    return shards


def _shape_fields(config: JobConfig) -> list[str]:
    """Return the extra fields of megatron's config that may make layers differ; those of recomputation do not."""
    return [name for name in config.model.extra if not name.startswith("recompute_")]


def _next_layers(shard: ShardSpec, layers: int, layout: Layout) -> ShardSpec:
    """Return the shard of the stage after an inner one."""
    step = stage_layers(layers, layout.virtual_stages)[1]

    def moved(box: BoxSpec) -> BoxSpec:
        return box._replace(offset=(box.offset[0] + step, *box.offset[1:])) if box.layered else box

    return replace(shard, params=tuple(replace(param, boxes=tuple(map(moved, param.boxes))) for param in shard.params))


def shard_spec(config: JobConfig, layout: Layout, part: int, pp: int) -> ShardSpec:
    """Return the parameters of one model shard."""
    groups = _collection(layout, part, pp)
    with c10d.default_group(groups.tp_dp_cp):
        _, chunks = build_model(config, groups, layout, pp, "meta")
        return shard_spec_of(chunks, config.train, layout, part)


def shard_spec_of(chunks: Sequence[Any], train: TrainSection, layout: Layout = _ALONE, part: int = 0) -> ShardSpec:
    """Return the parameters that the chunks of a model hold, whatever wraps them.

    Args:
        train: says how each of them is optimized.
        layout, part: of which part of a stage in which layout they are.

    Raises:
        PlanError: its ``sharded_state_dict`` lacks a parameter, or has other state.
    """
    overrides = _standard_overrides()
    chunk_of = {id(each): number for number, chunk in enumerate(chunks) for each in chunk.parameters()}
    boxes = _boxes(chunks)
    return ShardSpec(
        tuple(
            _optimized(_param(name, each, boxes[id(each)], overrides, chunk_of[id(each)]), each, train)
            for name, each in named_parameters(chunks).items()
        ),
        layout.parts // layout.tp,
        part // layout.tp,
        layout.parts // layout.expert_parts,
        part // layout.expert_parts,
    )


def _boxes(chunks: Sequence[Any]) -> dict[int, list[BoxSpec]]:
    """Return the boxes of each parameter, by its id.

    Raises:
        PlanError: there is state that is no parameter.
    """
    boxes: dict[int, list[BoxSpec]] = {id(parameter): [] for parameter in named_parameters(chunks).values()}
    with _some_default_group():
        for inner in map(unwrap, chunks):
            for entry in nested_values(inner.sharded_state_dict(metadata={"dp_cp_group": _Sizes(1, 0)})):
                if isinstance(entry, ShardedObject) and _says_something(entry.data):
                    raise PlanError(f"{entry.key} {_NO_PARAMETER}")
                for parameter, part in _parts(entry):
                    if id(parameter) not in boxes:
                        raise PlanError(f"{part.key} {_NO_PARAMETER}")
                    boxes[id(parameter)].append(_box(parameter, part))
    return boxes


def _says_something(extra: Any) -> bool:
    """Return whether a module's extra state is more than what Transformer Engine has of layers that are not in FP8."""
    if isinstance(extra, torch.Tensor):
        return bool(extra.numel())
    if isinstance(extra, io.BytesIO):
        return bool(extra.getvalue())
    return bool(len(extra)) if hasattr(extra, "__len__") else extra is not None


def _optimized(param: ParamSpec, parameter: torch.Tensor, train: TrainSection) -> ParamSpec:
    """Return the parameter with what updates it, in the group without weight decay if a pattern says so of its tensor.

    Not of its own name: a tied embedding has two, and a layer is numbered from 0 in each pipeline stage.
    """
    kind, tensor, group = train.optimizer, param.boxes[0].tensor, param.group
    if kind == "muon" and not _is_matrix(parameter, tensor):
        kind = "adam"
    if group is not None and any(fnmatchcase(tensor, pattern) for pattern in train.no_weight_decay):
        group = group._replace(wd_mult=0.0)
    return replace(param, group=group, moments=moments_of(train, kind))


def _is_matrix(parameter: torch.Tensor, tensor: str) -> bool:
    """Return whether Muon is for it: megatron-core marks the output layer and embeddings, but not learned positions."""
    outside = getattr(parameter, "is_embedding_or_output_parameter", False) or "embedding" in tensor
    return parameter.dim() == 2 and not outside


def group_overrides(config: JobConfig, layout: Layout, chunks: Sequence[Any]) -> dict[Any, Any]:
    """Return what megatron is told of the groups of a model's parameters.

    Raises:
        BadInput: a pattern of ``train.no_weight_decay`` is the name of no tensor.
    """
    if not config.train.no_weight_decay:
        return _standard_overrides()
    world_spec(config, layout)  # raises
    spec, parameters = shard_spec_of(chunks, config.train), named_parameters(chunks)
    chosen = {id(parameters[one.name]) for one in spec.params if one.group is not None and one.group.wd_mult == 0.0}
    predicate = ParamPredicate(name="no_weight_decay", fn=lambda parameter: id(parameter) in chosen)
    return {**_standard_overrides(), ParamKey(predicate=predicate): {"wd_mult": 0.0}}


def _standard_overrides() -> dict[Any, Any]:
    """Return what megatron tells itself of groups, and that no gradient descent moves the biases of experts."""
    standard: dict[Any, Any] = get_standard_config_overrides(OptimizerConfig())
    return {**standard, ParamKey(attr=EXPERT_BIAS): {"lr_mult": 0.0}}


@contextmanager
def _some_default_group() -> Iterator[None]:
    """Set a default group if torch has none: without it megatron takes every rank to be 0 of 1, in any group."""
    with nullcontext() if dist.is_initialized() else c10d.default_group(_Sizes(1, 0)):
        yield


def _parts(entry: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs of a parameter and its part as a ``ShardedTensor``, for one entry of a sharded state dict."""
    if isinstance(entry, ShardedTensor):
        yield entry.data, entry
    elif isinstance(entry, ShardedTensorFactory):
        for part in nested_values(entry.build()):
            if isinstance(part, ShardedTensor):
                yield entry.data, part


def _box(parameter: torch.Tensor, part: Any) -> BoxSpec:
    if not part.data.is_contiguous():
        raise PlanError(f"{part.key}: a part of a parameter does not lie in one run of it")
    return BoxSpec(
        tensor=part.key,
        global_shape=tuple(part.global_shape),
        offset=tuple(part.global_offset),
        shape=(1,) * part.prepend_axis_num + tuple(part.local_shape),
        start=part.data.storage_offset() - parameter.storage_offset(),
        layered=part.prepend_axis_num > 0,
    )


def _param(name: str, parameter: Any, boxes: list[BoxSpec], overrides: dict[Any, Any], chunk: int) -> ParamSpec:
    boxes = sorted(boxes, key=lambda box: box.start)
    if sum(box.size for box in boxes) != parameter.numel():
        raise PlanError(f"{name}: the model's sharded_state_dict does not say where all of this parameter lies")
    dtype = str(parameter.dtype).removeprefix("torch.")
    if dtype not in ITEMSIZE:
        raise PlanError(f"{name}: parameters of dtype {dtype} cannot be moved; {', '.join(ITEMSIZE)} can")
    group = None
    if parameter.requires_grad:
        matching = [override for key, override in overrides.items() if key.matches(parameter, name)]
        group = GroupSpec(**{field: value for override in matching for field, value in override.items()})
    shared, alone = bool(getattr(parameter, "shared_embedding", False)), not getattr(parameter, "allreduce", True)
    return ParamSpec(name, parameter.numel(), dtype, tuple(boxes), group, shared, alone, chunk)


def _collection(layout: Layout, part: int, pp: int) -> Any:
    """Return the groups of the first replica of a shard, as far as building a model needs them."""
    rank = layout.replica_groups()[layout.shards().index((part, pp)), 0].item()

    def along(*axes: Axis) -> _Sizes:
        group = layout.group(rank, *axes)
        return _Sizes(len(group), group.index(rank))

    one, tensor, pipeline, data, model = _Sizes(1, 0), along("tp"), along("pp"), along("dp"), along("tp", "pp")
    return ProcessGroupCollection(
        tp=tensor,
        pp=pipeline,
        dp=data,
        mp=model,
        embd=None,
        pos_embd=None,
        cp=one,
        ep=along("ep"),
        tp_cp=tensor,
        tp_ep=along("etp", "ep"),
        tp_ep_pp=along("etp", "ep", "pp"),
        tp_dp_cp=along("tp", "pp", "dp"),
        dp_cp=data,
        expt_tp=along("etp"),
        expt_dp=along("edp"),
    )
