"""Megatron-LM's arguments, which its checkpoints hold, as a job file's section ``[model]``, and back. Pure.

An argument that is missing has Megatron-LM's default. There are hundreds, most of them about training, so only those
that are known to change what is computed are looked at; that the tensors are those of the model is checked besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from liver_slurm.config.decode import decode
from liver_slurm.config.problem import shown
from liver_slurm.config.schema import ModelSection
from liver_slurm.config.shapes import expert_width, head_width, padded_vocabulary

_FIXED: dict[str, tuple[object, ...]] = {
    "activation_func_clamp_value": (None,),
    "apply_layernorm_1p": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "attention_output_gate": (False,),
    "experimental_attention_variant": (None,),
    "glu_linear_offset": (0.0,),
    "heterogeneous_layers_config_encoded_json": (None,),
    "heterogeneous_layers_config_path": (None,),
    "hybrid_layer_pattern": (None,),
    "hybrid_override_pattern": (None,),
    "is_hybrid_model": (False,),
    "linear_attention_freq": (None,),
    "moe_apply_probs_on_input": (False,),
    "moe_expert_capacity_factor": (None,),
    "moe_latent_size": (None,),
    "moe_router_group_topk": (None,),
    "moe_router_num_groups": (None,),
    "moe_router_topk_scaling_factor": (None, 1.0),
    "mtp_num_layers": (None, 0),
    "multi_latent_attention": (False,),
    "no_rope_freq": (None,),
    "openai_gelu": (False,),
    "qk_l2_norm": (False,),
    "quick_geglu": (False,),
    "retro_add_retriever": (False,),
    "rotary_interleaved": (False,),
    "rotary_seq_len_interpolation_factor": (None, 1),
    "softmax_type": ("vanilla",),
    "spec": (None,),
    "squared_relu": (False,),
    "window_size": (None,),
}
"""What must be so, the first as what a missing one means: no key of ``[model]`` says another thing."""
_NOT_TAKEN = {
    "norm_epsilon": "--norm-epsilon",
    "qk_layernorm": "--qk-layernorm",
    "use_rope_scaling": "--use-rope-scaling",
    "rope_scaling_factor": "--rope-scaling-factor",
    "moe_shared_expert_gate": "--moe-shared-expert-gate",
}
"""Arguments that Megatron-LM's ``--use-checkpoint-args`` leaves as they are, with their options."""


class UnknownArgumentsError(ValueError):
    """A model that cannot be expressed; the message is one line that names the argument or the key."""


def read_args(args: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """Read what arguments say of their model, as keys of ``[model]``: all that change the arithmetic.

    Args:
        vocabulary: tokens that the model has; Megatron-LM pads them, and its loss has the padding in it.

    Raises:
        UnknownArgumentsError: the model cannot be expressed.
    """
    for name, allowed in _FIXED.items():
        if (found := args.get(name, allowed[0])) not in allowed:
            raise UnknownArgumentsError(f"{name} {shown(found)} is not possible here; allowed: {shown(allowed[0])}")
    swiglu, biases = args.get("swiglu", False), args.get("add_bias_linear", True)
    # Megatron's fused kernel for biases and GELU computes the approximation.
    fused = biases and args.get("bias_gelu_fusion", True)
    rotary = args.get("use_rotary_position_embeddings", False)
    positions = "rope" if rotary else args.get("position_embedding_type", "learned_absolute")
    heads = args.get("num_attention_heads")
    scaled = positions == "rope" and args.get("use_rope_scaling", False)
    section = {
        "num_layers": args.get("num_layers"),
        "hidden_size": args.get("hidden_size"),
        "num_attention_heads": heads,
        "ffn_hidden_size": args.get("ffn_hidden_size"),
        "num_query_groups": args.get("num_query_groups") if args.get("group_query_attention", False) else heads,
        "kv_channels": args.get("kv_channels"),
        "vocab_size": vocabulary,
        "share_embeddings_and_output_weights": not args.get("untie_embeddings_and_output_weights", False),
        "normalization": args.get("normalization", "LayerNorm"),
        "layernorm_epsilon": args.get("norm_epsilon", args.get("layernorm_epsilon", 1e-5)),
        "gated_linear_unit": swiglu,
        "activation_func": "silu" if swiglu else "gelu-tanh" if fused else "gelu",
        "add_bias_linear": biases,
        "add_qkv_bias": args.get("add_qkv_bias", False),
        "qk_layernorm": args.get("qk_layernorm", False),
        "position_embedding_type": positions,
        "max_position_embeddings": args.get("max_position_embeddings") if positions == "learned_absolute" else None,
        "rotary_base": _whole(args.get("rotary_base", 10000)),
        "rotary_percent": args.get("rotary_percent", 1.0),
        "rope_scaling_factor": args.get("rope_scaling_factor", 8.0) if scaled else None,
        **_read_experts(args),
    }
    _, problems = decode({"model": section})
    for problem in problems:
        if problem.key.startswith("model."):
            raise UnknownArgumentsError(f"of their arguments, {problem.key} {problem.text}")
    return section


def _read_experts(args: Mapping[str, Any]) -> dict[str, Any]:
    experts = args.get("num_experts")
    if experts is None:
        return {}
    every = args.get("moe_layer_freq", 1)
    if every != 1 and every != [1] * len(every if isinstance(every, list) else ()):
        raise UnknownArgumentsError(f"moe_layer_freq {shown(every)} is not possible here: all layers have experts")
    balancing, coefficient = args.get("moe_router_load_balancing_type", "aux_loss"), args.get("moe_aux_loss_coeff")
    if balancing == "sinkhorn":
        raise UnknownArgumentsError('moe_router_load_balancing_type "sinkhorn" is not possible here: it routes tokens')
    taken = balancing == "aux_loss" and isinstance(coefficient, float)
    return {
        "num_moe_experts": experts,
        "moe_router_topk": args.get("moe_router_topk", 2),
        "moe_router_pre_softmax": args.get("moe_router_pre_softmax", False),
        "moe_router_score_function": args.get("moe_router_score_function", "softmax"),
        "moe_router_enable_expert_bias": args.get("moe_router_enable_expert_bias", False),
        "moe_router_bias_update_rate": args.get("moe_router_bias_update_rate", 1e-3),
        "moe_ffn_hidden_size": args.get("moe_ffn_hidden_size") or args.get("ffn_hidden_size"),
        "moe_aux_loss_coeff": coefficient if taken else 0.0,
        "moe_z_loss_coeff": args.get("moe_z_loss_coeff") or 0.0,
        "moe_shared_expert_intermediate_size": args.get("moe_shared_expert_intermediate_size"),
        "moe_shared_expert_gate": args.get("moe_shared_expert_gate", False),
    }


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# ---- back ----------------------------------------------------------------------------------------------------------


def write_args(model: ModelSection, vocabulary: int, sequence: int) -> dict[str, Any]:
    """Write the arguments of a model.

    Args:
        vocabulary: tokens, without padding.
        sequence: tokens that it was trained with.

    Raises:
        UnknownArgumentsError: Megatron-LM has no arguments for it.
    """
    _check_expressible(model)
    learned, heads = model.position_embedding_type == "learned_absolute", model.num_attention_heads
    groups = model.query_groups
    return {
        **{name: allowed[0] for name, allowed in _FIXED.items()},
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": heads,
        "ffn_hidden_size": model.ffn_width,
        "group_query_attention": groups != heads,
        "num_query_groups": groups if groups != heads else 1,
        "kv_channels": head_width(model),
        "vocab_size": vocabulary,
        "padded_vocab_size": padded_vocabulary(vocabulary),
        "make_vocab_size_divisible_by": 128,
        "untie_embeddings_and_output_weights": not model.share_embeddings_and_output_weights,
        "normalization": model.normalization,
        "norm_epsilon": model.layernorm_epsilon,
        "layernorm_epsilon": model.layernorm_epsilon,
        "swiglu": model.gated_linear_unit,
        "bias_gelu_fusion": model.activation_func == "gelu-tanh",
        "add_bias_linear": model.add_bias_linear,
        "add_qkv_bias": model.add_qkv_bias,
        "qk_layernorm": model.qk_layernorm,
        "add_position_embedding": True,
        "position_embedding_type": model.position_embedding_type,
        "use_rotary_position_embeddings": not learned,
        "seq_length": sequence,
        "max_position_embeddings": model.max_position_embeddings or sequence,
        "rotary_base": model.rotary_base,
        "rotary_percent": model.rotary_percent,
        "use_rope_scaling": model.rope_scaling_factor is not None,
        "rope_scaling_factor": model.rope_scaling_factor or 8.0,
        "num_experts": model.num_moe_experts,
        "moe_layer_freq": 1,
        "moe_router_load_balancing_type": "aux_loss" if model.moe_aux_loss_coeff else "none",
        "moe_router_topk": model.moe_router_topk,
        "moe_router_pre_softmax": model.moe_router_pre_softmax,
        "moe_router_score_function": model.moe_router_score_function,
        "moe_router_enable_expert_bias": model.moe_router_enable_expert_bias,
        "moe_router_bias_update_rate": model.moe_router_bias_update_rate,
        "moe_ffn_hidden_size": expert_width(model) if model.num_moe_experts else None,
        "moe_aux_loss_coeff": model.moe_aux_loss_coeff,
        "moe_z_loss_coeff": model.moe_z_loss_coeff or None,
        "moe_shared_expert_intermediate_size": model.moe_shared_expert_intermediate_size,
        "moe_shared_expert_gate": model.moe_shared_expert_gate,
    }


def _check_expressible(model: ModelSection) -> None:
    if model.provider is not None or model.extra:
        key = "provider" if model.provider is not None else "extra"
        raise UnknownArgumentsError(f"model.{key} makes it a model that Megatron-LM's arguments do not say all of")
    usual = ("silu",) if model.gated_linear_unit else ("gelu", "gelu-tanh") if model.add_bias_linear else ("gelu",)
    if model.activation_func not in usual:
        gated = "with" if model.gated_linear_unit else "without"
        raise UnknownArgumentsError(
            f"model.activation_func {shown(model.activation_func)} {gated} gated_linear_unit is nothing that arguments "
            f"of Megatron-LM say; allowed: {', '.join(usual)}"
        )


def options_to_add(args: Mapping[str, Any]) -> str:
    """Write the options that Megatron-LM needs besides ``--use-checkpoint-args``, which does not take all arguments."""
    found = []
    for name, option in _NOT_TAKEN.items():
        value = args[name]
        if name == "rope_scaling_factor" and not args["use_rope_scaling"]:
            continue
        if value is not False:
            found.append(option if value is True else f"{option} {value}")
    if not args["swiglu"] and not args["bias_gelu_fusion"]:
        found.append("--no-bias-gelu-fusion")
    return " ".join(found)
