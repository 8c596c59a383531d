"""Mixtures of experts in a Hugging Face ``config.json``: which family has which, and its keys, there and back. Pure."""

from __future__ import annotations

from typing import Any, Protocol

from liver_slurm.config.schema import ModelSection
from liver_slurm.config.shapes import expert_width

EXPERT_FAMILIES = {
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""Each ``model_type`` with experts that can be read, with the ``architectures`` that is written for it."""
_ROUTER = {"moe_router_score_function": "softmax", "moe_router_enable_expert_bias": False}
"""What is the same in all of them."""


class Keys(Protocol):
    """Keys of a table that is read."""

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        """Return the value of a key."""

    def size(self, name: str, default: int | None = None) -> int:
        """Return the value of a key that is a number of something."""

    def must_be(self, name: str, allowed: Any, why: str) -> None:
        """Refuse another value."""


def read_experts(keys: Keys, family: str) -> dict[str, Any]:
    """Read the keys of ``[model]`` about experts; none of a family without.

    Raises:
        ValueError: they cannot be expressed.
    """
    if family not in EXPERT_FAMILIES:
        return {}
    keys.must_be("attention_bias", False, "models with experts have no such biases")
    keys.must_be("mlp_bias", False, "models with experts have no such biases")
    keys.take("router_aux_loss_coef", float)  # how it was trained; model.moe_aux_loss_coeff says how it is
    chosen, experts = "num_experts_per_tok", keys.take("num_experts", int)
    if family == "mixtral":
        keys.must_be("router_jitter_noise", 0.0, "nothing is added to what the router sees")
        return {
            "num_moe_experts": keys.size("num_local_experts", experts or 8),
            "moe_router_topk": keys.size(chosen, 2),
            "moe_router_pre_softmax": False,
            **_ROUTER,
            "moe_ffn_hidden_size": keys.size("intermediate_size"),
            "moe_shared_expert_intermediate_size": None,
            "moe_shared_expert_gate": False,
        }
    keys.must_be("decoder_sparse_step", 1, "all layers have experts")
    keys.must_be("mlp_only_layers", [], "all layers have experts")
    shared = keys.size("shared_expert_intermediate_size") if family == "qwen2_moe" else None
    return {
        "num_moe_experts": keys.size("num_local_experts", experts),
        "moe_router_topk": keys.size(chosen),
        "moe_router_pre_softmax": not keys.take("norm_topk_prob", bool, False),
        **_ROUTER,
        "moe_ffn_hidden_size": keys.size("moe_intermediate_size"),
        "moe_shared_expert_intermediate_size": shared,
        "moe_shared_expert_gate": shared is not None,
    }


def expert_family(model: ModelSection) -> str:
    """Return the family of a model with experts, if one computes what it does; see :func:`expert_needs`."""
    if model.qk_layernorm:
        return "qwen3_moe"
    return "qwen2_moe" if model.moe_shared_expert_intermediate_size is not None else "mixtral"


def expert_needs(model: ModelSection) -> list[tuple[str, object]]:
    """Return the keys of ``[model]`` that must have these values, for the model's family to compute what it does."""
    family = expert_family(model)
    needs: list[tuple[str, object]] = [
        ("add_bias_linear", False),
        *_ROUTER.items(),
        ("moe_shared_expert_gate", family == "qwen2_moe"),
    ]
    if family == "qwen3_moe":
        needs.append(("moe_shared_expert_intermediate_size", None))
    if family == "mixtral":
        needs += [("moe_router_pre_softmax", False), ("add_qkv_bias", False)]
    return needs


def write_experts(model: ModelSection) -> dict[str, Any]:
    """Write the keys about experts of a ``config.json``; none of a model without."""
    if model.num_moe_experts is None:
        return {}
    family = expert_family(model)
    common = {"num_experts_per_tok": model.moe_router_topk}
    if family == "mixtral":
        return {**common, "num_local_experts": model.num_moe_experts, "intermediate_size": expert_width(model)}
    qwen = {
        **common,
        "num_experts": model.num_moe_experts,
        "moe_intermediate_size": expert_width(model),
        "norm_topk_prob": not model.moe_router_pre_softmax,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    if family == "qwen3_moe":
        return qwen
    shared = model.moe_shared_expert_intermediate_size
    return {**qwen, "shared_expert_intermediate_size": shared, "qkv_bias": model.add_qkv_bias}
