"""Megatron-LM's arguments as a section [model], and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from liver_slurm.config.megatron_args import UnknownArgumentsError, options_to_add, read_args, write_args
from liver_slurm.config.schema import ModelSection

MODEL = ModelSection(num_layers=2, hidden_size=32, num_attention_heads=4, ffn_hidden_size=48, vocab_size=300)
MODELS = [
    MODEL,
    replace(MODEL, num_query_groups=2, kv_channels=16, qk_layernorm=True, rope_scaling_factor=4.0, add_qkv_bias=True),
    replace(MODEL, gated_linear_unit=False, activation_func="gelu-tanh", add_bias_linear=True, rotary_percent=0.25),
    replace(
        MODEL,
        normalization="LayerNorm",
        gated_linear_unit=False,
        activation_func="gelu",
        position_embedding_type="learned_absolute",
        max_position_embeddings=64,
        share_embeddings_and_output_weights=False,
    ),
    replace(MODEL, num_moe_experts=4, moe_ffn_hidden_size=16, moe_aux_loss_coeff=0.01, moe_z_loss_coeff=0.001),
    replace(
        MODEL,
        num_moe_experts=4,
        moe_router_topk=1,
        moe_router_pre_softmax=True,
        moe_shared_expert_intermediate_size=16,
        moe_shared_expert_gate=True,
    ),
]


def resolved(model: ModelSection) -> ModelSection:
    """With the values of its defaults."""
    heads = model.num_attention_heads
    experts = {} if model.num_moe_experts is None else {"moe_ffn_hidden_size": model.moe_ffn_hidden_size or 48}
    return replace(
        model,
        num_query_groups=model.num_query_groups or heads,
        kv_channels=model.kv_channels or model.hidden_size // heads,
        **experts,
    )


@pytest.mark.parametrize("model", MODELS)
def test_there_and_back(model: ModelSection) -> None:
    assert ModelSection(**read_args(write_args(model, 300, 64), 300)) == resolved(model)


def test_what_is_missing_has_the_default_of_theirs() -> None:
    args = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
    section = read_args(args, 512)
    assert section["normalization"] == "LayerNorm"
    assert section["position_embedding_type"] == "learned_absolute"
    assert section["activation_func"] == "gelu-tanh", "of the fused kernel"
    assert section["vocab_size"] == 512
    assert "num_moe_experts" not in section
    assert read_args({**args, "bias_gelu_fusion": False}, 512)["activation_func"] == "gelu"
    assert read_args({**args, "add_bias_linear": False}, 512)["activation_func"] == "gelu"
    assert read_args({**args, "use_rotary_position_embeddings": True}, 512)["max_position_embeddings"] is None


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"squared_relu": True}, "squared_relu true is not possible here; allowed: false"),
        ({"window_size": [128, 0]}, "window_size [128, 0] is not possible here"),
        (
            {"position_embedding_type": "none", "use_rotary_position_embeddings": False},
            'model.position_embedding_type "none" is not allowed',
        ),
        ({"num_experts": 4, "moe_layer_freq": [0, 1]}, "moe_layer_freq [0, 1] is not possible here"),
        ({"num_experts": 4, "moe_router_load_balancing_type": "sinkhorn"}, '"sinkhorn" is not possible here'),
        ({"num_layers": None}, "model.num_layers"),
        ({"rotary_base": object()}, "model.rotary_base"),
    ],
)
def test_what_cannot_be_expressed_is_refused(args: dict[str, Any], says: str) -> None:
    with pytest.raises(UnknownArgumentsError) as caught:
        read_args({**write_args(MODEL, 300, 64), **args}, 300)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"provider": "own:model"}, "model.provider"),
        ({"extra": {"attention_softmax_in_fp32": True}}, "model.extra"),
        ({"activation_func": "gelu"}, "allowed: silu"),
        ({"activation_func": "gelu-tanh", "gated_linear_unit": False}, "allowed: gelu"),
    ],
)
def test_what_they_have_no_arguments_for_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UnknownArgumentsError, match=says):
        write_args(replace(MODEL, **changes), 300, 64)


def test_options_that_their_checkpoint_does_not_bring() -> None:
    norm = "--norm-epsilon 1e-05"
    assert options_to_add(write_args(MODEL, 300, 64)) == norm
    assert options_to_add(write_args(MODELS[1], 300, 64)) == (
        f"{norm} --qk-layernorm --use-rope-scaling --rope-scaling-factor 4.0"
    )
    assert options_to_add(write_args(MODELS[3], 300, 64)) == f"{norm} --no-bias-gelu-fusion"
