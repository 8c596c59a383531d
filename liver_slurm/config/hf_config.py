"""A Hugging Face ``config.json`` as a job file's section ``[model]``, and back. Pure.

A key that nobody here knows is refused: it might change what is computed, and nothing would say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from liver_slurm.config.hf_experts import EXPERT_FAMILIES, expert_family, expert_needs, read_experts, write_experts
from liver_slurm.config.problem import shown
from liver_slurm.config.schema import ModelSection

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    **EXPERT_FAMILIES,
}
"""Each ``model_type`` that can be read, with the ``architectures`` that is written for it."""
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "relu": "relu",
}
_ACTIVATIONS_BACK = {"silu": "silu", "gelu": "gelu", "gelu-tanh": "gelu_new", "relu": "relu"}
_LLAMA3 = {"low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
"""What megatron-core's scaling of rotary positions takes for granted."""
_MISTRAL_WINDOW = 4096
"""Default of transformers' ``MistralConfig``."""
_HARMLESS = re.compile(
    r"_name_or_path|architectures|model_type|transformers_version|(torch_)?dtype|use_cache|\w+_token_id|tokenizer_class"
    r"|initializer_range|\w*dropout|\w+_pdrop|output_\w+|(use_)?return_dict|id2label|label2id|task_specific_params"
    r"|problem_type|prefix|summary_\w+|chunk_size_feed_forward|torchscript|tf_legacy_loss|finetuning_task"
    r"|(max|min)_length|do_sample|num_beams|temperature|top_[kp]|typical_p|\w*repetition_penalty|length_penalty"
    r"|no_repeat_ngram_size|encoder_no_repeat_ngram_size|num_beam_groups|diversity_penalty|num_return_sequences"
    r"|early_stopping|bad_words_ids|suppress_tokens|begin_suppress_tokens|remove_invalid_values"
    r"|exponential_decay_length_penalty"
)
"""Keys that say nothing of the arithmetic of a forward pass in evaluation: names, numbers of tokens, how text is made
with the model, and dropout, which is a setting of training."""


class UnknownModelError(ValueError):
    """A model that cannot be expressed; the message is one line that names the key."""


@dataclass(frozen=True)
class HfModel:
    """What a ``config.json`` says."""

    section: dict[str, Any]
    """Keys of ``[model]``: all that change the arithmetic, those with their default value too."""
    window: int | None
    """Longest sequence for which its sliding windows change nothing; None: any."""


class _Keys:
    """Keys of a table that is read; what is asked for counts as known."""

    def __init__(self, table: Mapping[str, Any], prefix: str = "") -> None:
        self._table, self._prefix, self._known = table, prefix, set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        """Return the value of a key; null is as good as missing."""
        self._known.add(name)
        value = self._table.get(name)
        if value is None:
            return default
        number = kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and (kind is float or value == int(value)):
            return kind(value)
        if kind in (int, float) or not isinstance(value, kind):
            raise UnknownModelError(f"{self._prefix}{name} is {shown(value)}, where {kind.__name__} was expected")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """Return the value of a key that is a number of something."""
        value = self.take(name, int, default)
        if value is None:
            raise UnknownModelError(f"it has no {self._prefix}{name}")
        if value < 1:
            raise UnknownModelError(f"{self._prefix}{name} is {value}; allowed: >= 1")
        return int(value)

    def must_be(self, name: str, allowed: Any, why: str) -> None:
        """Refuse another value than this, which is also what a missing key means."""
        self._known.add(name)
        value = self._table.get(name)
        if value is not None and value != allowed:
            raise UnknownModelError(f"{self._prefix}{name} {shown(value)} is not possible here: {why}")

    def no_others(self) -> None:
        """Refuse keys that were not asked for and do something."""
        for name, value in self._table.items():
            harmless = name in self._known or _HARMLESS.fullmatch(name) or value is None
            if not harmless:
                raise UnknownModelError(
                    f"{self._prefix}{name} {shown(value)} is not known, and may change what the model computes; take "
                    "it out if it does not"
                )


def read_config(config: Mapping[str, Any]) -> HfModel:
    """Read a ``config.json``.

    Raises:
        UnknownModelError: the model cannot be expressed.
    """
    keys = _Keys(config)
    family = keys.take("model_type", str, "")
    if family not in FAMILIES:
        raise UnknownModelError(f"model_type {shown(family)} is not possible; allowed: {', '.join(FAMILIES)}")
    named = config.get("architectures")
    if named and named != [FAMILIES[family]]:
        raise UnknownModelError(f"architectures {shown(named)} is not possible; allowed: {FAMILIES[family]}")
    keys.must_be("is_encoder_decoder", False, "only decoders can be trained")
    keys.must_be("add_cross_attention", False, "only decoders can be trained")
    keys.must_be("is_decoder", False, "only causal language models can be trained")
    keys.must_be("pruned_heads", {}, "heads cannot be pruned")
    keys.must_be("tie_encoder_decoder", False, "only decoders can be trained")
    keys.must_be("use_bfloat16", False, "train.precision decides it")
    model = _gpt2(keys) if family == "gpt2" else _llama_like(keys, family)
    keys.no_others()
    return model


def _llama_like(keys: _Keys, family: str) -> HfModel:
    heads, hidden = keys.size("num_attention_heads"), keys.size("hidden_size")
    keys.take("max_position_embeddings", int)  # without scaling, it says only what the model was trained for
    keys.must_be("pretraining_tp", 1, "sums would be made in parts")
    layers, window = keys.size("num_hidden_layers"), _window(keys, family)
    biased = keys.take("attention_bias", bool, False)
    mlp_biased = keys.take("mlp_bias", bool, False)
    if family == "qwen2":
        keys.must_be("attention_bias", True, "queries, keys and values of this family have biases")
    if family != "qwen2" and biased != mlp_biased:
        raise UnknownModelError(
            f"attention_bias {shown(biased)} with mlp_bias {shown(mlp_biased)} is not possible here; allowed: both, or "
            "neither"
        )
    if family == "qwen2" and mlp_biased:
        raise UnknownModelError("mlp_bias true is not possible here: of qwen2, only queries, keys and values have one")
    mixtral, moe = family == "mixtral", family in EXPERT_FAMILIES
    base, factor = _rotary(keys, 1e6 if mixtral else 10000.0)
    section = {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "ffn_hidden_size": keys.size("intermediate_size"),
        "num_query_groups": keys.size("num_key_value_heads", None if moe else heads),
        "kv_channels": keys.size("head_dim", 128 if family == "qwen3" else max(hidden // heads, 1)),
        "vocab_size": keys.size("vocab_size"),
        "share_embeddings_and_output_weights": keys.take("tie_word_embeddings", bool, False),
        "normalization": "RMSNorm",
        "layernorm_epsilon": keys.take("rms_norm_eps", float, 1e-5 if mixtral else 1e-6),
        "gated_linear_unit": True,
        "activation_func": _activation(keys, "hidden_act", "silu"),
        "add_bias_linear": family != "qwen2" and biased,
        "add_qkv_bias": family == "qwen2" or (family == "qwen2_moe" and keys.take("qkv_bias", bool, True)),
        "qk_layernorm": family in ("qwen3", "qwen3_moe"),
        "position_embedding_type": "rope",
        "rotary_base": base,
        "rotary_percent": 1.0,
        "rope_scaling_factor": factor,
        **read_experts(keys, family),
    }
    return HfModel(section, window)


def _window(keys: _Keys, family: str) -> int | None:
    """Return the longest sequence for which no sliding window changes anything; None: there is no window."""
    missing = family == "mistral" and "sliding_window" not in keys  # null is not the same there
    window: int | None = keys.take("sliding_window", int, _MISTRAL_WINDOW if missing else None)
    used = keys.take("use_sliding_window", bool, False)
    keys.take("max_window_layers", int)
    kinds = keys.take("layer_types", list, [])
    if strange := [one for one in kinds if one not in ("full_attention", "sliding_attention")]:
        raise UnknownModelError(f"layer_types {shown(strange[0])} is not possible here")
    slides = used if family.startswith("qwen") else family in ("mistral", "mixtral")
    return window if slides or "sliding_attention" in kinds else None


def _rotary(keys: _Keys, usual: float) -> tuple[int, float | None]:
    """Return the base of the rotary positions, by default the ``usual`` one, and the factor of Llama 3.1's scaling.

    None: they are not scaled.
    """
    newer, older = keys.take("rope_parameters", dict), keys.take("rope_scaling", dict)
    if newer and older:
        raise UnknownModelError("rope_scaling is not possible beside rope_parameters; take one of them out")
    name = "rope_parameters" if newer is not None else "rope_scaling"
    inner = _Keys(newer if newer is not None else older or {}, f"{name}.")
    theta = keys.take("rope_theta", float, usual)
    theta = inner.take("rope_theta", float, theta)
    if theta != int(theta) or theta < 1:
        raise UnknownModelError(f"rope_theta {theta} is not possible here; allowed: a whole number >= 1")
    keys.must_be("partial_rotary_factor", 1, "all of a head is rotated in this family")
    inner.must_be("partial_rotary_factor", 1, "all of a head is rotated in this family")
    kind = inner.take("rope_type", str, inner.take("type", str, "default"))
    factor = None
    if kind == "llama3":
        factor = inner.take("factor", float)
        for one, value in _LLAMA3.items():
            if (found := inner.take(one, float)) != value:
                raise UnknownModelError(f"{name}.{one} is {shown(found)}; allowed: {value}")
        if factor is None or factor <= 0:
            raise UnknownModelError(f"{name}.factor is {shown(factor)}; allowed: a number > 0")
    elif kind != "default":
        raise UnknownModelError(f'{name}.rope_type "{kind}" is not possible here; allowed: default, llama3')
    inner.no_others()
    return int(theta), factor


def _activation(keys: _Keys, name: str, default: str) -> str:
    found = keys.take(name, str, default)
    if found not in _ACTIVATIONS:
        raise UnknownModelError(f'{name} "{found}" is not possible here; allowed: {", ".join(_ACTIVATIONS)}')
    return _ACTIVATIONS[found]


def _gpt2(keys: _Keys) -> HfModel:
    hidden, heads, positions = keys.size("n_embd"), keys.size("n_head"), keys.size("n_positions")
    keys.must_be("n_ctx", positions, "it must be n_positions")
    keys.must_be("scale_attn_weights", True, "attention is always scaled")
    keys.must_be("scale_attn_by_inverse_layer_idx", False, "attention is scaled alike in all layers")
    keys.take("reorder_and_upcast_attn", bool)  # the same product in another precision
    section = {
        "num_layers": keys.size("n_layer"),
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "ffn_hidden_size": keys.size("n_inner", 4 * hidden),
        "num_query_groups": heads,
        "kv_channels": max(hidden // heads, 1),
        "vocab_size": keys.size("vocab_size"),
        "share_embeddings_and_output_weights": keys.take("tie_word_embeddings", bool, True),
        "normalization": "LayerNorm",
        "layernorm_epsilon": keys.take("layer_norm_epsilon", float, 1e-5),
        "gated_linear_unit": False,
        "activation_func": _activation(keys, "activation_function", "gelu_new"),
        "add_bias_linear": True,
        "add_qkv_bias": False,
        "qk_layernorm": False,
        "position_embedding_type": "learned_absolute",
        "max_position_embeddings": positions,
    }
    return HfModel(section, None)


# ---- back ----------------------------------------------------------------------------------------------------------


def write_config(model: ModelSection, vocabulary: int, sequence: int, end: int) -> dict[str, Any]:
    """Write the ``config.json`` of a model.

    Args:
        vocabulary: tokens, without padding.
        sequence: tokens that it was trained with.
        end: token at the end of a document.

    Raises:
        UnknownModelError: no family of transformers' computes what it does.
    """
    if model.provider is not None or model.extra:
        key = "provider" if model.provider is not None else "extra"
        raise UnknownModelError(f"model.{key} makes it a model that no family of transformers' is known to be")
    family = _family(model)
    common = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "vocab_size": vocabulary,
        "tie_word_embeddings": model.share_embeddings_and_output_weights,
        "initializer_range": model.init_method_std,
        "bos_token_id": None,
        "eos_token_id": end,
    }
    heads, activation = model.num_attention_heads, _ACTIVATIONS_BACK[model.activation_func]
    if family == "gpt2":
        return {
            **common,
            "n_embd": model.hidden_size,
            "n_head": heads,
            "n_layer": model.num_layers,
            "n_inner": model.ffn_width,
            "n_positions": model.max_position_embeddings or sequence,
            "layer_norm_epsilon": model.layernorm_epsilon,
            "activation_function": activation,
        }
    biases = {"attention_bias": model.add_bias_linear, "mlp_bias": model.add_bias_linear} if family == "llama" else {}
    scaling = {"rope_type": "llama3", "factor": model.rope_scaling_factor, **_LLAMA3}
    return {
        **common,
        **biases,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.kv_channels or model.hidden_size // heads,
        "hidden_act": activation,
        "rms_norm_eps": model.layernorm_epsilon,
        "rope_theta": float(model.rotary_base),
        "max_position_embeddings": sequence,
        **write_experts(model),
        **({"rope_scaling": scaling} if model.rope_scaling_factor is not None else {}),
    }


def _family(model: ModelSection) -> str:
    """Return the family that computes what the model does.

    Raises:
        UnknownModelError: none does.
    """
    learned = model.position_embedding_type == "learned_absolute"
    heads = model.num_attention_heads
    needs: list[tuple[str, object]] = [
        ("normalization", "LayerNorm" if learned else "RMSNorm"),
        ("gated_linear_unit", not learned),
    ]
    if learned:
        needs += [("add_bias_linear", True), ("qk_layernorm", False)]
        if model.query_groups != heads:
            needs.append(("num_query_groups", heads))
        if (model.kv_channels or 0) * heads not in (0, model.hidden_size):
            needs.append(("kv_channels", model.hidden_size // heads))
    else:
        needs.append(("rotary_percent", 1.0))
        if model.qk_layernorm:
            needs += [("add_bias_linear", False), ("add_qkv_bias", False)]
    if model.num_moe_experts is not None:
        needs += [("position_embedding_type", "rope"), *expert_needs(model)]
    for key, value in needs:
        if (found := getattr(model, key)) != value:
            positions = "learned positions" if learned else "rotary positions"
            more = " and qk_layernorm" if model.qk_layernorm and not learned else ""
            more += " and experts" if model.num_moe_experts is not None else ""
            raise UnknownModelError(
                f"model.{key} {shown(found)} is not possible in a family of transformers' with {positions}{more}; "
                f"allowed: {shown(value)}"
            )
    if learned:
        return "gpt2"
    if model.num_moe_experts is not None:
        return expert_family(model)
    if model.qk_layernorm:
        return "qwen3"
    return "qwen2" if model.add_qkv_bias and not model.add_bias_linear else "llama"
