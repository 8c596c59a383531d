"""What ``model.extra`` may not say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from liver_slurm.base.errors import BadInput
from liver_slurm.config.extra import transformer_fields, why_refused
from liver_slurm.config.load import check_job, load_job
from liver_slurm.config.schema import ModelSection
from liver_slurm.engine.megatron import compat

compat.install()
from megatron.core.transformer import TransformerConfig  # noqa: E402


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("num_moe_experts", 4, "write it as model.num_moe_experts"),
        ("moe_router_enable_expert_bias", True, "write it as model.moe_router_enable_expert_bias"),
        ("moe_expert_capacity_factor", 1.0, "own layer of experts would not heed it"),
        ("hidden_dropout", 0.1, "write it as model.hidden_dropout"),
        ("attention_dropout", 0.0, "write it as model.attention_dropout"),
        ("calculate_per_token_loss", False, "uneven numbers of microbatches"),
        ("fp8", "hybrid", "for FP8 set train.fp8"),
        ("mtp_num_layers", 1, "model.provider builds your own"),
        ("tensor_model_parallel_size", 2, "the layout decides it"),
        ("hidden_size", 64, "write it as model.hidden_size"),
        ("bf16", True, "train.precision decides it"),
        ("recompute_granularity", "full", ""),
        ("calculate_per_token_loss", True, ""),
        ("qk_layernorm", True, "write it as model.qk_layernorm"),
        ("softmax_scale", 0.1, ""),
        ("rotary_interleaved", True, ""),
    ],
)
def test_a_field(name: str, value: Any, why: str) -> None:
    told = why_refused(name, value, own_model=False)
    assert (why in told) if told and why else (not told and not why)


def test_a_model_of_ones_own_may_read_what_ours_has_no_use_for() -> None:
    assert why_refused("moe_grouped_gemm", True, own_model=True) is None
    assert why_refused("hidden_dropout", 0.1, own_model=True) is not None


def test_a_job_file_that_asks_for_it_is_refused() -> None:
    config = load_job(Path(__file__).parents[3] / "configs" / "gpt-tiny.toml")
    model = dataclasses.replace(config.model, extra={"moe_expert_capacity_factor": 1.0})
    with pytest.raises(BadInput, match=r"model\.extra\.moe_expert_capacity_factor: is not allowed: this product"):
        check_job(dataclasses.replace(config, model=model))


def test_what_the_product_sets_itself_is_refused_or_may_be_set() -> None:
    """A field that a version of megatron-core adds is passed on: the names here must be those of this version."""
    names = {field.name for field in dataclasses.fields(TransformerConfig)}
    refused = {name for name in names if why_refused(name, 1, own_model=False)}
    ours = {field.name for field in dataclasses.fields(ModelSection)}
    assert {"num_moe_experts", "sequence_parallel", "context_parallel_size", "enable_cuda_graph"} <= refused
    assert (ours & names) <= refused
    assert {"qk_l2_norm", "qk_clip", "embedding_init_method_std", "layernorm_zero_centered_gamma"} <= refused
    assert {"window_size", "no_rope_freq"} & refused == set()


def test_the_names_that_are_read_are_those_of_the_class() -> None:
    assert transformer_fields() == {field.name for field in dataclasses.fields(TransformerConfig)}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.extra.nonsense=1", "model.extra.nonsense: no such field of megatron-core's TransformerConfig"),
        ("model.extra={a=1}", "model.extra.a: no such field"),
        ("model.extra.rotary_interleavd=true", "; the nearest is rotary_interleaved"),
    ],
)
def test_a_field_that_megatron_does_not_have_is_refused(override: str, says: str) -> None:
    tiny = Path(__file__).parents[3] / "configs" / "gpt-tiny.toml"
    with pytest.raises(BadInput) as caught:
        load_job(tiny, [override], Path("/dev/null"))
    assert says in str(caught.value)
    elsewhere = ["live.python=/opt/other/bin/python"]
    assert load_job(tiny, [override, *elsewhere], Path("/dev/null")).model.extra, "another megatron-core may have it"
