"""What the plan assumes about every rank, against megatron's own model, buffers and optimizer."""

from __future__ import annotations

import dataclasses
import io
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from one_rank import shard_of

from liver_slurm.base.errors import BadInput, PlanError
from liver_slurm.config.schema import ComponentSection, JobConfig, LiveSection, ModelSection, TrainSection
from liver_slurm.engine.megatron import compat
from liver_slurm.engine.megatron.dense_layer import DenseLayer, SequenceNorm
from liver_slurm.engine.megatron.engine import MegatronEngine
from liver_slurm.engine.megatron.model import build_model, named_parameters
from liver_slurm.engine.megatron.spec import _collection, _Sizes, parameter_count, shard_spec, shard_spec_of, world_spec
from liver_slurm.parallel import c10d
from liver_slurm.parallel.layout import Layout
from liver_slurm.reshard.shard_spec import GroupSpec, WorldSpec

with compat.imports():
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

TINY = ModelSection(
    num_layers=4, hidden_size=32, num_attention_heads=4, num_query_groups=2, ffn_hidden_size=48, vocab_size=300
)


def job(precision: str = "fp32", **model: Any) -> JobConfig:
    train = TrainSection(steps=1, seq_length=16, global_batch_size=8, precision=precision)  # type: ignore[arg-type]
    return JobConfig(model=dataclasses.replace(TINY, **model), train=train)


def real_ranges(config: JobConfig, layout: Layout, rank: int, bucket_size: int | None) -> dict[str, Any]:
    """Ranges of a rank, as megatron's distributed optimizer derives them from megatron's buffers."""
    part, pp = layout.shard_key(rank)
    groups = _collection(layout, part, pp)
    groups.dp = groups.dp_cp = groups.intra_dp_cp = _Sizes(layout.dp, layout.coordinates(rank).dp)
    groups.expt_dp = groups.intra_expt_dp = _Sizes(layout.edp, layout.coordinate("edp", rank))
    groups.intra_dist_opt = groups.tp_dp_cp
    with c10d.default_group(groups.tp_dp_cp), torch.device("meta"):
        transformer, models = build_model(config, groups, layout, pp, "meta")
        chunks = [
            DistributedDataParallel(
                transformer,
                DistributedDataParallelConfig(
                    grad_reduce_in_fp32=True,
                    use_distributed_optimizer=True,
                    overlap_grad_reduce=bucket_size is not None,
                    bucket_size=bucket_size,
                ),
                model,
                disable_bucketing=number > 0,
                pg_collection=groups,
            )
            for number, model in enumerate(models)
        ]
    names = {parameter: name for name, parameter in named_parameters(chunks).items()}
    found = {}
    for buffer in (buffer for chunk in chunks for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)):
        for by_bucket in DistributedOptimizer._build_gbuf_range_map(buffer).values():
            for bucket in by_bucket:
                for parameter, ranges in bucket["param_map"].items():
                    found[names[parameter]] = (ranges["param"].start, ranges["param"].end)
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bucket_size", [None, 3000])
@pytest.mark.parametrize("dp", [2, 3, 5])
@pytest.mark.parametrize(("stages", "vpp"), [(1, 1), (2, 1), (2, 2)])
def test_ranges_are_those_of_the_distributed_optimizer(
    stages: int, vpp: int, dp: int, bucket_size: int | None, tied: bool, precision: str
) -> None:
    config = job(precision, share_embeddings_and_output_weights=tied)
    layout = Layout(2, stages, dp, vpp=vpp)
    world = dataclasses.replace(world_spec(config, layout), bucket_size=bucket_size)
    for pp in range(layout.pp):
        for rank in range(dp):
            place = layout.rank(tp=0, pp=pp, dp=rank)
            assert our_ranges(world, place) == real_ranges(config, layout, place, bucket_size)


@pytest.mark.parametrize("bucket_size", [None, 3000])
@pytest.mark.parametrize(
    "text",
    [
        "tp2pp1ep2dp2",
        "tp2pp1ep2dp4",
        "tp2pp1ep2dp6",
        "tp2pp1ep3dp6",
        "tp2pp1etp1dp1",
        "tp2pp1ep2etp1dp2",
        "tp4pp1ep2etp1dp1",
        "tp1pp1etp2dp4",
        "tp2pp1ep3etp1dp3",
    ],
)
def test_ranges_of_experts_are_those_of_the_distributed_optimizer(text: str, bucket_size: int | None) -> None:
    config = job(num_query_groups=4, num_moe_experts=6, moe_ffn_hidden_size=24)
    layout = Layout.parse(text)
    world = dataclasses.replace(world_spec(config, layout), bucket_size=bucket_size)
    assert {param.expert for param in world.shards[0, 0].params} == {True, False}
    for rank in range(layout.size):
        assert our_ranges(world, rank) == real_ranges(config, layout, rank, bucket_size)


def our_ranges(world: WorldSpec, rank: int) -> dict[str, Any]:
    """Ranges of a rank, as the product has them without a rank."""
    key, replica = world.layout.shard_key(rank), world.layout.replica(rank)
    return {
        param.name: (owned.start, owned.end)
        for param, ranges in zip(world.shards[key].params, world.ranges(*key), strict=True)
        for owned in ranges
        if owned.replica == replica
    }


def test_experts_are_whole_and_numbered_over_the_ranks_that_they_are_divided_over() -> None:
    config = job(num_query_groups=4, num_moe_experts=4, moe_ffn_hidden_size=24)
    name = "decoder.layers.mlp.experts.experts.linear_fc2.weight"
    found = [(place, offset[:2]) for place, offset, _ in held(world_spec(config, Layout(1, 2, 2, ep=2)), name)]
    assert found[:4] == [((0, 0), (0, 0)), ((0, 0), (0, 1)), ((0, 0), (1, 0)), ((0, 0), (1, 1))]
    assert found[-2:] == [((1, 1), (3, 2)), ((1, 1), (3, 3))]


@pytest.mark.parametrize("layout", ["tp2pp1etp1dp1", "tp2pp1ep2etp1dp1", "tp1pp1etp2dp2", "tp4pp2ep2etp1dp2"])
def test_experts_that_are_cut_otherwise_make_up_the_same_tensors(layout: str) -> None:
    config = job(num_query_groups=4, num_moe_experts=4, moe_ffn_hidden_size=24, moe_shared_expert_intermediate_size=8)
    world, whole = world_spec(config, Layout.parse(layout)), world_spec(config, Layout(1, 1, 1))
    assert world.tensors == whole.tensors
    for (part, _), shard in world.shards.items():
        experts = [param for param in shard.params if ".local_experts." in param.name]
        assert [param for param in shard.params if param.expert] == experts
        assert len(experts) == 2 * 4 // world.layout.pp * 4 // world.layout.ep, part
        assert all(param.size * world.layout.etp in (24 * 32, 2 * 24 * 32) for param in experts)
    for name, info in world.weights.items():
        covered = torch.zeros(info.shape, dtype=torch.int32)
        for offset, shape in {box[1:] for box in held(world, name)}:  # replicas once
            covered[tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))] += 1
        assert bool((covered == 1).all()), name


def test_the_layers_are_the_products_own_whatever_form_specs_have() -> None:
    groups = _collection(Layout(2, 1, 1), 0, 0)
    with c10d.default_group(groups.tp_dp_cp):
        _, (model,) = build_model(job(), groups, Layout(2, 1, 1), 0, "meta")
    for layer in model.decoder.layers:
        assert type(layer) is DenseLayer
        assert type(layer.input_layernorm) is type(layer.pre_mlp_layernorm) is SequenceNorm
    assert type(model.decoder.final_layernorm) is SequenceNorm


def held(world: WorldSpec, tensor: str) -> list[tuple[tuple[int, int], tuple[int, ...], tuple[int, ...]]]:
    return [
        (place, box.offset, box.shape)
        for place, shard in sorted(world.shards.items())
        for param in shard.params
        for box in param.boxes
        if box.tensor == tensor
    ]


def test_gate_and_up_are_boxes_of_one_parameter() -> None:
    world = world_spec(job(), Layout(2, 1, 1))
    name = "decoder.layers.mlp.linear_fc1.weight"
    assert world.weights[name].shape == (4, 96, 32)
    first = next(param for param in world.shards[1, 0].params if param.name.endswith("0.mlp.linear_fc1.weight"))
    assert [(box.offset, box.shape, box.start) for box in first.boxes] == [
        ((0, 24, 0), (1, 24, 32), 0),
        ((0, 72, 0), (1, 24, 32), 24 * 32),
    ]
    assert all(box.layered for box in first.boxes)


def test_tied_embeddings_are_one_tensor_on_two_stages() -> None:
    tied = world_spec(job(), Layout(1, 2, 1))
    assert "output_layer.weight" not in tied.weights
    places = held(tied, "embedding.word_embeddings.weight")
    assert [place for place, *_ in places] == [(0, 0), (0, 1)]
    shared = {param.name for shard in tied.shards.values() for param in shard.params if param.shared}
    assert shared == {"embedding.word_embeddings.weight", "output_layer.weight"}
    whole = world_spec(job(), Layout(1, 1, 1))
    assert len(held(whole, "embedding.word_embeddings.weight")) == 1
    assert not any(param.shared for param in whole.shards[0, 0].params)
    untied = world_spec(job(share_embeddings_and_output_weights=False), Layout(1, 2, 1))
    assert [place for place, *_ in held(untied, "output_layer.weight")] == [(0, 1)]


@pytest.mark.parametrize("layout", ["tp1pp1dp1", "tp2pp1dp1", "tp4pp2dp1", "tp1pp3dp1", "tp2pp4dp1", "tp2pp2vpp2dp1"])
def test_shards_make_up_the_same_tensors_in_every_layout(layout: str) -> None:
    """Query groups fewer than tp, layers that pp does not divide, a vocabulary that tp does not divide."""
    config = job(vocab_size=301)
    world, whole = world_spec(config, Layout.parse(layout)), world_spec(config, Layout(1, 1, 1))
    assert world.tensors == whole.tensors
    for name, info in world.weights.items():
        covered = torch.zeros(info.shape, dtype=torch.int32)
        for offset, shape in {box[1:] for box in held(world, name)}:  # replicas once
            covered[tuple(slice(a, a + n) for a, n in zip(offset, shape, strict=True))] += 1
        assert bool((covered == 1).all()), name


def test_layers_keep_their_global_number() -> None:
    world = world_spec(job(), Layout(1, 2, 1))
    assert [offset[0] for _, offset, _ in held(world, "decoder.layers.self_attention.linear_proj.weight")] == [
        0,
        1,
        2,
        3,
    ]


def test_chunks_lie_apart_and_keep_the_numbers_of_their_layers() -> None:
    """A parameter's own name says which chunk it is of, and is no part of the state's names."""
    world = world_spec(job(), Layout(1, 2, 1, vpp=2))
    name = "decoder.layers.self_attention.linear_proj.weight"
    assert [(place, offset[0]) for place, offset, _ in held(world, name)] == [
        ((0, 0), 0),
        ((0, 0), 2),
        ((0, 1), 1),
        ((0, 1), 3),
    ]
    params = {param.name: param for param in world.shards[0, 1].params}
    assert len(params) == len(world.shards[0, 1].params)
    assert (params["1.output_layer.weight"].chunk, params["0.decoder.layers.0.mlp.linear_fc2.weight"].chunk) == (1, 0)
    assert world.tensors == world_spec(job(), Layout(1, 1, 1)).tensors


RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


@pytest.mark.parametrize("extra", [{}, RECOMPUTE])
@pytest.mark.parametrize("layout", ["tp2pp4dp1", "tp1pp5dp2", "tp1pp4vpp2dp1"])
def test_inner_stages_that_are_derived_are_as_if_built(layout: str, extra: dict[str, Any]) -> None:
    config = job(num_layers=8, extra=extra)
    world = world_spec(config, Layout.parse(layout))
    for (tp, pp), shard in world.shards.items():
        assert shard == shard_spec(config, world.layout, tp, pp)


def test_vectors_are_not_decayed() -> None:
    params = shard_spec(job(add_bias_linear=True), Layout(1, 1, 1), 0, 0).params
    groups = {param.name: param.group for param in params}
    assert groups["decoder.final_layernorm.weight"] == GroupSpec(wd_mult=0.0)
    assert groups["decoder.layers.0.mlp.linear_fc2.bias"] == GroupSpec(wd_mult=0.0)
    assert groups["embedding.word_embeddings.weight"] == GroupSpec()


def test_bf16_has_masters() -> None:
    world = world_spec(job("bf16"), Layout(1, 1, 1))
    assert world.tensors["embedding.word_embeddings.weight"].dtype == "bfloat16"
    assert world.tensors["embedding.word_embeddings.weight@master"].dtype == "float32"
    assert not any(name.endswith("@master") for name in world_spec(job(), Layout(1, 1, 1)).tensors)


@pytest.mark.parametrize("fp8", [True, False])
def test_layers_are_in_fp8_where_the_job_says_so(fp8: bool) -> None:
    config = job("bf16")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, fp8=fp8))
    groups = _collection(Layout(1, 1, 1), 0, 0)
    with c10d.default_group(groups.tp_dp_cp):
        _, (model,) = build_model(config, groups, Layout(1, 1, 1), 0, "meta")
    (layer, *_) = (module for module in model.modules() if isinstance(module, DenseLayer))
    parts = layer.parts(layer.mlp_of(layer.mlp))
    assert parts.mlp is not None
    assert (parts.attention.fp8, parts.mlp.fp8) == (fp8, fp8)


def test_a_frozen_parameter_has_no_optimizer_state() -> None:
    groups = _collection(Layout(1, 1, 1), 0, 0)
    with c10d.default_group(groups.tp_dp_cp):
        _, (model,) = build_model(job(), groups, Layout(1, 1, 1), 0, "meta")
    model.embedding.word_embeddings.weight.requires_grad_(False)
    spec = shard_spec_of([model], job().train)
    assert [param.name for param in spec.params if not param.trained] == ["embedding.word_embeddings.weight"]


def test_state_that_is_no_parameter_is_refused() -> None:
    groups = _collection(Layout(1, 1, 1), 0, 0)
    with c10d.default_group(groups.tp_dp_cp):
        _, (model,) = build_model(job(), groups, Layout(1, 1, 1), 0, "meta")
    model.decoder.final_layernorm.register_buffer("seen", torch.zeros(3, device="meta"))
    with pytest.raises(PlanError, match="seen is state of the model but no parameter"):
        shard_spec_of([model], job().train)


@pytest.mark.parametrize(
    ("extra", "refused"),
    [
        (torch.empty(0, dtype=torch.uint8), False),
        (None, False),
        (io.BytesIO(), False),
        (io.BytesIO(b"amax"), True),
        (torch.zeros(3), True),
        ({"seen": 3}, True),
        (np.zeros(2), True),
        (0.5, True),
    ],
    ids=["empty", "none", "no-bytes", "bytes", "tensor", "table", "array", "number"],
)
def test_extra_state_that_says_something_is_refused(extra: Any, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine's layers have one each, in which there is nothing without FP8."""
    monkeypatch.setattr(SequenceNorm, "get_extra_state", lambda _self: extra)
    groups = _collection(Layout(1, 1, 1), 0, 0)
    with c10d.default_group(groups.tp_dp_cp):
        _, (model,) = build_model(job(), groups, Layout(1, 1, 1), 0, "meta")
    with pytest.raises(PlanError, match="_extra_state is state of the model but no") if refused else nullcontext():
        shard_spec_of([model], job().train)


@pytest.mark.parametrize("inner", [True, False], ids=["of-a-layer", "of-the-model"])
@pytest.mark.parametrize(("recipe", "refused"), [("delayed", True), ("tensorwise", False)])
def test_a_model_with_histories_of_scales_is_refused(
    recipe: str, refused: bool, inner: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(config: Any, **_: Any) -> torch.nn.Module:
        model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        (model[0] if inner else model).config = SimpleNamespace(fp8="hybrid", fp8_recipe=recipe)
        return model

    monkeypatch.setattr("liver_slurm.engine.megatron.model.load_function", lambda _name: build)
    groups = _collection(Layout(1, 1, 1), 0, 0)
    with pytest.raises(BadInput, match='"delayed", whose histories') if refused else nullcontext():
        build_model(job(provider="a:b"), groups, Layout(1, 1, 1), 0, "meta")


def test_outside_any_world_the_groups_of_the_model_count() -> None:
    """Without a default group megatron would take every rank to be 0 of 1."""
    layout = Layout(2, 2, 1)
    groups = _collection(layout, 1, 1)
    with c10d.default_group(groups.tp_dp_cp):
        _, (model,) = build_model(job(), groups, layout, 1, "meta")
    assert not torch.distributed.is_initialized()
    assert shard_spec_of([model], job().train) == shard_spec(job(), layout, 1, 1)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_and_operations_are_counted(tied: bool) -> None:
    config = job(share_embeddings_and_output_weights=tied)
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    layer = attention + 3 * 32 * 48 + 2 * 32
    count = 4 * layer + 32 + (1 if tied else 2) * 384 * 32
    assert parameter_count(config) == count
    assert MegatronEngine().token_flops(config) == 6 * count + 6 * 4 * 32 * 16


def test_nothing_is_said_of_the_operations_of_a_users_own_model() -> None:
    assert MegatronEngine().token_flops(job(provider="nowhere:build")) is None


def test_gradients_are_reduced_in_buckets_on_gpus_with_replicas() -> None:
    on_gpus = dataclasses.replace(job(), live=LiveSection(component=(ComponentSection(gpus_per_task=1),)))
    assert world_spec(on_gpus, Layout(1, 1, 2)).bucket_size == 40_000_000, "megatron's default"
    assert world_spec(on_gpus, Layout(1, 1, 64)).bucket_size == 64_000_000
    assert world_spec(on_gpus, Layout(2, 1, 1)).bucket_size is None
    assert world_spec(job(), Layout(1, 1, 2)).bucket_size is None


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tensors_without_weight_decay_are_in_a_group_of_their_own(tied: bool, precision: str) -> None:
    """In megatron's optimizer as in the spec, and wherever a layout has a part or a copy of them."""
    config = job(precision, share_embeddings_and_output_weights=tied)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, no_weight_decay=("embedding.*", "*linear_proj*"))
    )
    found = set()
    for layout in (Layout(1, 1, 1), Layout(2, 2, 1), Layout(1, 4, 2)):
        params = [param for shard in world_spec(config, layout).shards.values() for param in shard.params]
        plain = {param.boxes[0].tensor for param in params if param.group == GroupSpec(1.0)}
        without = {param.boxes[0].tensor for param in params if param.group == GroupSpec(0.0)}
        assert not plain & without
        found.add((frozenset(plain), frozenset(without)))
    ((plain, without),) = found
    assert {name for name in without if "norm" not in name} == {
        "embedding.word_embeddings.weight",
        "decoder.layers.self_attention.linear_proj.weight",
    }
    with shard_of(config) as shard:
        counts = {
            group["wd_mult"]: sum(one.numel() for one in group["params"]) for group in shard.optimizer.param_groups
        }
        sizes = {
            mult: sum(param.size for param in shard.spec.params if param.group == GroupSpec(mult))
            for mult in (0.0, 1.0)
        }
        assert counts == sizes


def test_a_pattern_that_is_the_name_of_no_tensor_is_refused() -> None:
    config = dataclasses.replace(job(), train=dataclasses.replace(job().train, no_weight_decay=("embeding.*",)))
    with pytest.raises(BadInput, match=r'no_weight_decay: "embeding\.\*" is the name of no tensor'):
        world_spec(config, Layout(1, 1, 1))
