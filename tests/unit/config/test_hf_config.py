"""A config.json as the section [model], and back: what is not understood is refused, never passed over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from liver_slurm.config.hf_config import FAMILIES, UnknownModelError, read_config, write_config
from liver_slurm.config.schema import ModelSection

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "transformers_version": "4.43.0",
    "use_cache": True,
}
MISTRAL = {**LLAMA, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "rope_scaling": None}
QWEN2 = {**MISTRAL, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "attention_bias": None}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "n_ctx": 1024,
    "vocab_size": 50257,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "attn_pdrop": 0.1,
    "summary_type": "cls_index",
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}


def test_llama() -> None:
    found = read_config(LLAMA)
    assert found.window is None
    assert found.section == {
        "num_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "ffn_hidden_size": 14336,
        "num_query_groups": 8,
        "kv_channels": 128,
        "vocab_size": 128256,
        "share_embeddings_and_output_weights": False,
        "normalization": "RMSNorm",
        "layernorm_epsilon": 1e-5,
        "gated_linear_unit": True,
        "activation_func": "silu",
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "qk_layernorm": False,
        "position_embedding_type": "rope",
        "rotary_base": 500000,
        "rotary_percent": 1.0,
        "rope_scaling_factor": 8.0,
    }


MIXTRAL = {**MISTRAL, "model_type": "mixtral", "architectures": None, "num_local_experts": 8, "rope_theta": None}
QWEN3_MOE = {
    **MISTRAL,
    "model_type": "qwen3_moe",
    "architectures": None,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "head_dim": 64,
    "router_aux_loss_coef": 0.001,
}
QWEN2_MOE = {
    **{key: value for key, value in QWEN3_MOE.items() if key != "norm_topk_prob"},
    "model_type": "qwen2_moe",
    "shared_expert_intermediate_size": 5632,
}


def test_mixtures_of_experts() -> None:
    mixtral, qwen2, qwen3 = (read_config(one).section for one in (MIXTRAL, QWEN2_MOE, QWEN3_MOE))
    keys = ("num_moe_experts", "moe_router_topk", "moe_router_pre_softmax", "moe_ffn_hidden_size")
    assert [mixtral[key] for key in keys] == [8, 2, False, 14336]
    assert [qwen2[key] for key in keys] == [128, 8, True, 768]
    assert [qwen3[key] for key in keys] == [128, 8, False, 768]
    shared = ("moe_shared_expert_intermediate_size", "moe_shared_expert_gate", "add_qkv_bias", "qk_layernorm")
    assert [mixtral[key] for key in shared] == [None, False, False, False]
    assert [qwen2[key] for key in shared] == [5632, True, True, False]
    assert [qwen3[key] for key in shared] == [None, False, False, True]
    assert mixtral["rotary_base"] == 1_000_000


@pytest.mark.parametrize("config", [MIXTRAL, QWEN2_MOE, QWEN3_MOE])
def test_mixtures_of_experts_are_written_as_they_are_read(config: dict[str, Any]) -> None:
    model = ModelSection(**read_config(config).section)
    written = write_config(model, 128256, 131072, 0)
    assert written["model_type"] == config["model_type"]
    assert ModelSection(**read_config(written).section) == model


@pytest.mark.parametrize(
    ("config", "change", "says"),
    [
        (MIXTRAL, {"router_jitter_noise": 0.1}, "router_jitter_noise 0.1 is not possible here"),
        (MIXTRAL, {"num_key_value_heads": None}, "it has no num_key_value_heads"),
        (
            QWEN3_MOE,
            {"attention_bias": True, "mlp_bias": True},
            "attention_bias true is not possible here: models with experts",
        ),
        (QWEN3_MOE, {"decoder_sparse_step": 2}, "decoder_sparse_step 2 is not possible here: all layers have experts"),
        (QWEN2_MOE, {"mlp_only_layers": [0]}, "all layers have experts"),
        (QWEN2_MOE, {"shared_expert_intermediate_size": None}, "it has no shared_expert_intermediate_size"),
    ],
)
def test_mixtures_that_cannot_be_expressed(config: dict[str, Any], change: dict[str, Any], says: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        read_config({**config, **change})
    assert says in str(caught.value)


def test_newer_files_have_one_table_of_rotary_positions() -> None:
    inner = {**LLAMA["rope_scaling"], "rope_theta": 500000.0}  # type: ignore[dict-item]
    newer = {**LLAMA, "rope_theta": None, "rope_scaling": None, "rope_parameters": inner}
    assert read_config(newer) == read_config(LLAMA)


def test_gpt2() -> None:
    section = read_config(GPT2).section
    assert (section["position_embedding_type"], section["max_position_embeddings"]) == ("learned_absolute", 1024)
    assert (section["activation_func"], section["ffn_hidden_size"]) == ("gelu-tanh", 3072)
    assert section["add_bias_linear"]
    assert section["share_embeddings_and_output_weights"]


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({**MISTRAL, "sliding_window": 4096}, 4096),
        (MISTRAL, 4096),
        ({**MISTRAL, "sliding_window": None}, None),
        ({**QWEN2, "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28}, None),
        ({**QWEN2, "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 28}, 4096),
        ({**QWEN2, "sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}, 64),
    ],
)
def test_sliding_windows_limit_the_sequence(config: dict[str, Any], window: int | None) -> None:
    assert read_config(config).window == window


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "bert"}, "allowed: llama, mistral, qwen2, qwen3, gpt2"),
        ({"model_type": None}, "allowed: llama"),
        ({"model_type": ["llama"]}, 'model_type is ["llama"], where str was expected'),
        ({"architectures": ["LlamaForSequenceClassification"]}, "allowed: LlamaForCausalLM"),
        ({"quantization_config": {"bits": 4}}, "quantization_config a table is not known"),
        (
            {"attention_multiplier": 0.5},
            "attention_multiplier 0.5 is not known, and may change what the model computes",
        ),
        ({"attention_bias": True}, "attention_bias true with mlp_bias false is not possible here"),
        ({"pretraining_tp": 2}, "pretraining_tp 2 is not possible here"),
        ({"hidden_act": "quick_gelu"}, 'hidden_act "quick_gelu" is not possible here'),
        ({"rope_theta": 10000.5}, "rope_theta 10000.5 is not possible here; allowed: a whole number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not possible here"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_scaling.rope_type "linear" is not possible here'),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 'rope_scaling.rope_type "yarn" is not possible here'),
        ({"rope_scaling": {**LLAMA["rope_scaling"], "high_freq_factor": 8.0}}, "rope_scaling.high_freq_factor is 8.0"),  # type: ignore[dict-item]
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.low_freq_factor is None; allowed: 1"),
        ({"rope_scaling": {**LLAMA["rope_scaling"], "beta_fast": 3}}, "rope_scaling.beta_fast 3 is not known"),  # type: ignore[dict-item]
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_scaling is not possible beside rope_parameters"),
        ({"layer_types": ["chunked_attention"]}, 'layer_types "chunked_attention" is not possible here'),
        ({"hidden_size": None}, "it has no hidden_size"),
        ({"hidden_size": "wide"}, 'hidden_size is "wide", where int was expected'),
        ({"hidden_size": 0}, "hidden_size is 0; allowed: >= 1"),
        ({"hidden_size": True}, "hidden_size is true, where int was expected"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, where bool was expected"),
        ({"rope_scaling": "none"}, 'rope_scaling is "none", where dict was expected'),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_its_key(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        read_config({**LLAMA, **change})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@given(name=st.from_regex(r"[a-z]{3,8}_[a-z]{3,8}", fullmatch=True), value=st.floats(0.1, 9.0))
def test_no_unknown_key_is_passed_over(name: str, value: float) -> None:
    assume(not name.endswith(("_token_id", "dropout", "_pdrop")))
    with pytest.raises(UnknownModelError, match=f"x_{name}"):
        read_config({**LLAMA, f"x_{name}": value})


sections = st.builds(
    ModelSection,
    num_layers=st.integers(1, 8),
    hidden_size=st.sampled_from([64, 128]),
    num_attention_heads=st.sampled_from([4, 8]),
    ffn_hidden_size=st.none() | st.integers(1, 512),
    num_query_groups=st.none() | st.sampled_from([1, 2, 4]),
    kv_channels=st.none() | st.sampled_from([16, 32]),
    share_embeddings_and_output_weights=st.booleans(),
    normalization=st.sampled_from(["RMSNorm", "LayerNorm"]),
    layernorm_epsilon=st.sampled_from([1e-5, 1e-6]),
    gated_linear_unit=st.booleans(),
    activation_func=st.sampled_from(["silu", "gelu", "gelu-tanh", "relu"]),
    add_bias_linear=st.booleans(),
    add_qkv_bias=st.booleans(),
    qk_layernorm=st.booleans(),
    position_embedding_type=st.sampled_from(["rope", "learned_absolute"]),
    max_position_embeddings=st.none() | st.just(256),
    rotary_base=st.sampled_from([10000, 500000]),
    rotary_percent=st.sampled_from([1.0, 0.5]),
    rope_scaling_factor=st.none() | st.just(8.0),
)


@given(model=sections)
def test_what_is_written_is_read_as_the_same_model(model: ModelSection) -> None:
    try:
        document = write_config(model, 300, 64, 256)
    except UnknownModelError:
        return
    section = read_config(document).section
    learned = model.position_embedding_type == "learned_absolute"
    heads = model.num_attention_heads
    filled = {
        "num_query_groups": model.num_query_groups or heads,
        "kv_channels": model.kv_channels or model.hidden_size // heads,
        "ffn_hidden_size": model.ffn_hidden_size or 4 * model.hidden_size,
        "vocab_size": 300,
        "max_position_embeddings": model.max_position_embeddings or 64,
        "add_qkv_bias": model.add_qkv_bias and not model.add_bias_linear,  # which is of all layers
    }
    assert document["model_type"] in FAMILIES
    assert (document["model_type"] == "gpt2") == learned
    assert section == {key: filled.get(key, getattr(model, key)) for key in section}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rotary_percent": 0.5}, "model.rotary_percent 0.5 is not possible in a family of transformers' with rotary"),
        ({"normalization": "LayerNorm"}, 'model.normalization "LayerNorm" is not possible'),
        ({"qk_layernorm": True, "add_qkv_bias": True}, "with rotary positions and qk_layernorm; allowed: false"),
        ({"provider": "a:b"}, "model.provider makes it a model that no family"),
        ({"num_moe_experts": 4, "moe_router_pre_softmax": True}, "model.moe_router_pre_softmax true is not possible"),
        (
            {"num_moe_experts": 4, "moe_router_score_function": "sigmoid"},
            "model.moe_router_score_function",
        ),
        ({"num_moe_experts": 4, "moe_shared_expert_intermediate_size": 8}, "with rotary positions and experts"),
        (
            {"num_moe_experts": 4, "qk_layernorm": True, "moe_shared_expert_intermediate_size": 8},
            "model.moe_shared_expert_intermediate_size 8 is not possible",
        ),
        ({"extra": {"softmax_scale": 1.0}}, "model.extra makes it a model that no family"),
        ({"position_embedding_type": "learned_absolute"}, "with learned positions; allowed: "),
    ],
)
def test_what_no_family_computes_is_not_written(change: dict[str, Any], says: str) -> None:
    sizes = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    with pytest.raises(UnknownModelError) as caught:
        write_config(ModelSection(**{**sizes, **change}), 300, 64, 256)
    assert says in str(caught.value)
